"""Encoding keeps every example whole, counts what it leaves out, and comes back from disk as it was."""

import pickle

import msgspec
import numpy as np
import pytest

from data.chat import load_chat
from data.config import TokenizerConfig
from data.control_template import template_hash
from data.dataset import ARRAYS, encode_dataset, hash_dataset, read_dataset, write_dataset
from data.schema import Conversation, DataError, Turn
from data.tokenizer import train_tokenizer


def conversation(question, answer, *, language="en", source="s", task="t", number=1):
    turns = (Turn("user", question), Turn("assistant", answer))
    return Conversation(turns=turns, language=language, source=source, task=task, id=f"a.jsonl:{number}")


@pytest.fixture(scope="module")
def chat():
    tokenizer = train_tokenizer(["what is two and two? four", "mbili na mbili ni nne"], TokenizerConfig(vocab_size=300))
    return load_chat(tokenizer)


FEW = [
    conversation("two?", "2", language="sw", source="b", task="count"),
    conversation("and two and two?", "four", number=2),
    conversation("ሁለት?", "፪", language="am", number=3),
]


def test_examples_come_back_token_for_token(chat):
    dataset = encode_dataset(FEW, chat, row_length=64)
    assert len(dataset) == 3
    for index, each in enumerate(FEW):
        span = slice(dataset.offsets[index], dataset.offsets[index + 1])
        expected = chat.encode_conversation(each)
        assert dataset.tokens[span].tolist() == expected.ids.tolist()
        assert dataset.roles[span].tolist() == expected.roles.tolist()
        assert dataset.weights[span].tolist() == expected.weights.tolist()
        assert dataset.lengths[index] == len(expected.ids) - 1
        assert dataset.target_tokens[index] == expected.weights[1:].sum()


def test_tables_are_sorted_and_leave_zero_to_padding(chat):
    dataset = encode_dataset(FEW, chat, row_length=64)
    assert dataset.facts.languages == ("", "am", "en", "sw")
    assert dataset.facts.sources == ("", "b", "s")
    assert dataset.facts.tasks == ("", "count", "t")
    assert dataset.language.tolist() == [3, 2, 1]
    assert dataset.source.tolist() == [1, 2, 2]
    assert dataset.task.tolist() == [1, 2, 2]
    assert dataset.content_bytes.tolist() == [5, 20, 13]
    assert (dataset.facts.pad_id, dataset.facts.template_hash) == (chat.tokenizer.pad_id, template_hash())
    assert dataset.facts.tokenizer_hash == chat.tokenizer.hash


def test_dtypes_are_tight(chat):
    dataset = encode_dataset(FEW, chat, row_length=64)
    kinds = [getattr(dataset, name).dtype.name for name in ARRAYS]
    assert kinds == ["uint16", "int8", "float32", "int64", "int16", "int16", "int16", "int32"]


def test_an_example_of_exactly_a_row_is_kept_and_one_longer_dropped_and_counted(chat):
    lengths = [len(chat.encode_conversation(each).ids) - 1 for each in FEW]
    longest = max(lengths)
    assert len(encode_dataset(FEW, chat, row_length=longest)) == 3
    dataset = encode_dataset(FEW, chat, row_length=longest - 1)
    assert len(dataset) == 3 - lengths.count(longest)
    (dropped,) = dataset.facts.dropped
    assert (dropped.count, dropped.shortest) == (1, longest)
    lost = FEW[lengths.index(longest)]
    assert (dropped.source, dropped.language) == (lost.source, lost.language)
    # Nothing that was kept was shortened to fit.
    assert sorted(dataset.lengths) == sorted(length for length in lengths if length < longest)


def test_overlong_can_be_an_error_that_names_the_example(chat):
    with pytest.raises(DataError, match=r"a.jsonl:2 of source 's' \(en\) fills \d+ positions .* is 5; set it to"):
        encode_dataset(FEW[1:2], chat, row_length=5, overlong="error")


def test_nothing_left_is_an_error_that_says_what_length_would_do(chat):
    with pytest.raises(DataError, match=r"all 3 are longer .*=2 positions; the shortest fills \d+, so set it"):
        encode_dataset(FEW, chat, row_length=2)
    with pytest.raises(DataError, match="the sources gave none"):
        encode_dataset([], chat, row_length=2)


def test_what_cannot_be_encoded_stops_the_run_unless_noted(chat):
    """A peer logs bad records and ends as a success; here the first one raises, or each one is told of."""
    bad = conversation("two?", "", number=7)
    with pytest.raises(DataError, match=r"a\.jsonl:7"):
        encode_dataset([*FEW, bad], chat, row_length=64)
    noted = []
    dataset = encode_dataset(
        [bad, *FEW], chat, row_length=64, reject=lambda each, error: noted.append((each.id, str(error)))
    )
    assert len(dataset) == 3
    assert [name for name, _ in noted] == ["a.jsonl:7"]


def test_an_example_without_language_is_refused(chat):
    """Id 0 is padding: such tokens would vanish from every table by language."""
    with pytest.raises(DataError, match="lacks a language or a source"):
        encode_dataset([conversation("a", "b", language="")], chat, row_length=64)


def test_written_arrays_are_mapped_back_unchanged(chat, tmp_path):
    dataset = encode_dataset(FEW, chat, row_length=64)
    write_dataset(dataset, tmp_path)
    again = read_dataset(tmp_path)
    assert again.facts == dataset.facts
    for name in ARRAYS:
        assert isinstance(getattr(again, name), np.memmap)
        assert getattr(again, name).dtype == getattr(dataset, name).dtype
        np.testing.assert_array_equal(getattr(again, name), getattr(dataset, name))
    assert hash_dataset(again) == dataset.facts.hash


def test_a_mapped_dataset_crosses_to_a_process_as_a_path(chat, tmp_path):
    write_dataset(encode_dataset(FEW * 500, chat, row_length=64), tmp_path)
    pickled = pickle.dumps(read_dataset(tmp_path))
    assert len(pickled) < 1000
    assert len(pickle.loads(pickled)) == 1500


def test_a_dataset_in_memory_can_cross_too(chat):
    dataset = encode_dataset(FEW, chat, row_length=64)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(dataset)).tokens, dataset.tokens)


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "dataset.json"])
@pytest.mark.parametrize("keep", [None, 0, 60])
def test_a_half_written_dataset_is_never_taken_as_complete(chat, tmp_path, name, keep):
    write_dataset(encode_dataset(FEW, chat, row_length=64), tmp_path)
    if keep is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(DataError, match="delete it and prepare again"):
        read_dataset(tmp_path)


def test_the_hash_covers_all_a_batch_can_hold(chat):
    dataset = encode_dataset(FEW, chat, row_length=64)
    hashes = {dataset.facts.hash}
    for name in ARRAYS:
        array = np.array(getattr(dataset, name))
        array[-1] += 1
        hashes.add(hash_dataset(msgspec.structs.replace(dataset, **{name: array})))
    for change in ({"languages": ("", "am", "en", "sv")}, {"pad_id": 9}, {"sources": ("", "b", "z")}):
        facts = msgspec.structs.replace(dataset.facts, **change)
        hashes.add(hash_dataset(msgspec.structs.replace(dataset, facts=facts)))
    assert len(hashes) == 1 + len(ARRAYS) + 3
