"""A dataset is the table of a run's examples: what it keeps, what it leaves out and counts, and how it is stored."""

import json
import pickle

import msgspec
import numpy as np
import pytest
from toy_dataset import make_dataset, store_dataset

from data.chat import load_chat
from data.cleaning_config import CleaningConfig, ExactDuplicates, LengthLimits
from data.config import DataConfig, PackingConfig, TokenizerConfig
from data.dataset import ARRAYS, HASHED, find_missing_shards, hash_dataset, point_at_store, read_dataset
from data.prepare import prepare
from data.schema import Conversation, DataError, Turn
from data.source_config import FileSource, LossConfig
from data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

ROWS = {
    "b": [("two?", "2", "sw")],
    "s": [("and two and two?", "four", "en"), ("ሁለት?", "፪", "am")],
}


def write(folder, rows):
    for source, items in rows.items():
        lines = [
            json.dumps(
                {
                    "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                    "language": language,
                }
            )
            for question, answer, language in items
        ]
        (folder / f"{source}.jsonl").write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(["what is two and two? four"], TokenizerConfig(vocab_size=300)), folder)
    return folder


@pytest.fixture
def make(tmp_path, tokenizer_dir):
    """Prepares rows and gives what came of it."""

    def run(rows=ROWS, *, row_length=64, overlong="error", losses=None, limit=None, name="run", **fields):
        write(tmp_path, rows)
        sources = tuple(
            FileSource(
                name=source, path=f"{source}.jsonl", task=f"task {source}", limit=limit,
                loss=(losses or {}).get(source, LossConfig()),
            )
            for source in rows
        )  # fmt: skip
        config = DataConfig(
            sources=sources, packing=PackingConfig(row_length=row_length, overlong=overlong),
            **{"root": str(tmp_path), "max_dropped": 1.0, **fields},
        )  # fmt: skip
        tokenizer = TokenizerConfig(path=str(tokenizer_dir))
        return prepare(
            config, tokenizer, steps=None, epochs=1, batch_rows=1, seed=0, run_dir=tmp_path / name,
            store=tmp_path / "store",
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def chat(tokenizer_dir):
    return load_chat(load_tokenizer(tokenizer_dir))


def encode(chat, question, answer, loss=None):
    turns = (Turn("user", question), Turn("assistant", answer))
    return chat.encode_conversation(Conversation(turns=turns, language="en", source="s"), loss or LossConfig())


def positions_of(chat, rows):
    return [len(encode(chat, question, answer).ids) - 1 for items in rows.values() for question, answer, _ in items]


def test_examples_come_back_token_for_token(make, chat):
    dataset = make().dataset
    assert len(dataset) == 3
    for index, (question, answer, _) in enumerate([row for rows in ROWS.values() for row in rows]):
        tokens, expected = dataset.read([index]), encode(chat, question, answer)
        assert tokens.ids.tolist() == expected.ids.tolist()
        assert tokens.roles.tolist() == expected.roles.tolist()
        assert tokens.weight_codes.tolist() == expected.weights.tolist()
        assert dataset.lengths[index] == len(expected.ids) - 1
        assert dataset.target_tokens[index] == expected.weights[1:].sum()


def test_tables_are_sorted_and_leave_zero_to_padding(make, chat):
    dataset = make().dataset
    facts = dataset.facts
    assert facts.languages == ("", "am", "en", "sw")
    assert facts.sources == ("", "b", "s")
    assert facts.tasks == ("", "task b", "task s")
    assert (dataset.language.tolist(), dataset.source.tolist(), dataset.task.tolist()) == (
        [3, 2, 1],
        [1, 2, 2],
        [1, 2, 2],
    )
    assert dataset.content_bytes.tolist() == [5, 20, 13]
    assert dataset.characters.tolist() == [5, 20, 5]
    assert [dataset.name_example(index) for index in range(3)] == ["b.jsonl:1", "s.jsonl:1", "s.jsonl:2"]
    assert (facts.pad_id, facts.template_hash) == (chat.tokenizer.pad_id, chat.hash)
    assert facts.largest_id == max(int(dataset.read([index]).ids.max()) for index in range(3))


def test_the_weight_of_prompts_is_kept_by_source(make):
    dataset = make(losses={"s": LossConfig(prompt_weight=0.25)}).dataset
    assert dataset.facts.prompt_weights == (0.0, 0.0, 0.25)
    assert set(dataset.read([0]).weight_codes.tolist()) == {0, 1}
    assert set(dataset.read([1]).weight_codes.tolist()) == {0, 1, 2}


def test_an_example_of_exactly_a_row_is_kept_and_one_longer_dropped_and_counted(make, chat):
    rows = {"s": [("two?", "2", "en"), ("and two and two?", "four", "en"), ("3?", "3", "en")]}
    lengths = positions_of(chat, rows)
    longest = max(lengths)
    assert len(make(rows, row_length=longest, overlong="drop").dataset) == 3
    dataset = make(rows, row_length=longest - 1, overlong="drop", name="shorter").dataset
    assert len(dataset) == 2
    (dropped,) = dataset.facts.dropped
    assert (dropped.source, dropped.language, dropped.count, dropped.shortest) == ("s", "en", 1, longest)
    # Nothing that was kept was shortened to fit.
    assert sorted(dataset.lengths) == sorted(length for length in lengths if length < longest)


def test_overlong_can_be_an_error_that_names_the_example(make):
    with pytest.raises(DataError, match=r"s\.jsonl:2 of source 's' \(am\) fills \d+ positions .* is 12; set it to"):
        make(row_length=12)


def test_another_row_length_tokenises_nothing_again(make, tmp_path):
    make(row_length=64)
    before = sorted((tmp_path / "store").rglob("*"))
    make(row_length=48, name="other")
    assert sorted((tmp_path / "store").rglob("*")) == before


LONG = {"s": [("one? " * 3, "1 " * 3, "en"), ("x? " * 40, "y " * 40, "sw"), ("two?", "2", "sw")]}


@pytest.mark.parametrize("overlong", ["drop", "truncate", "split"])
def test_a_turn_that_fits_no_row_is_dropped_whatever_the_policy_and_counted_by_language(make, overlong):
    """trl#6668: an answer that was cut away must not stay as a row with nothing trained."""
    prepared = make(LONG, row_length=40, overlong=overlong)
    assert len(prepared.dataset) == 2
    assert [(item.language, item.count) for item in prepared.dataset.facts.dropped] == [("sw", 1)]
    assert prepared.plan.summary["dropped"] == {"sw": 1}
    assert prepared.dataset.target_tokens.min() > 0


def test_conversations_are_cut_between_turns_and_counted(make, tmp_path):
    turns = [{"role": role, "content": f"{role[0]} {n}"} for n in range(8) for role in ("user", "assistant")]
    row = json.dumps({"messages": turns, "language": "en"})
    for overlong in ("truncate", "split"):
        folder = tmp_path / overlong
        folder.mkdir()
        (folder / "s.jsonl").write_text(f"{row}\n", encoding="utf-8")
        fields = {"row_length": 40, "overlong": overlong, "name": f"{overlong}_run", "root": str(folder)}
        dataset = make({"s": []}, **fields).dataset
        assert [(cut.language, cut.count) for cut in dataset.facts.cut] == [("en", 1)]
        assert dataset.lengths.max() <= 40
        assert (len(dataset) == 1) == (overlong == "truncate")


def test_every_row_too_long_is_an_error_that_says_what_length_would_do(make):
    with pytest.raises(DataError, match=r"all 2 rows of source 's' were dropped: .*row_length is 8; set it to 11 or more"):
        make(row_length=8, overlong="drop")


def test_limit_takes_examples_evenly_from_all_over(make):
    rows = {"s": [(f"{n}?", f"{n}", "en") for n in range(10)]}
    dataset = make(rows, limit=4).dataset
    assert dataset.line.tolist() == [1, 3, 6, 8]
    assert dataset.facts.left_out == {"s": {"limit": 6}}


def test_duplicates_and_rows_that_cleaning_refuses_are_left_out_with_reasons(make, tmp_path):
    rows = {"b": [("a?", "1", "en"), ("b?", "2 and a long answer", "en")], "s": [("a?", "1", "en"), ("c?", "3", "sw")]}
    cleaning = CleaningConfig(
        length=LengthLimits(max_answer=10), exact_duplicates=ExactDuplicates(scope="all"), max_listed=10
    )
    prepared = make(rows, cleaning=cleaning)
    assert [prepared.dataset.name_example(index) for index in range(2)] == ["b.jsonl:1", "s.jsonl:2"]
    assert prepared.plan.summary["cleaned"] == {"length": 1, "exact_duplicates": 1}
    report = json.loads((tmp_path / "run" / "plan" / "cleaning.json").read_text())
    assert report["dropped"] == {"length": {"b": {"en": 1}}, "exact_duplicates": {"s": {"en": 1}}}
    assert [(row["id"], row["detail"]) for row in report["listed"] if row["predicate"] == "exact_duplicates"] == [
        ("s.jsonl:1", "as b.jsonl:1")
    ]


SMALL = make_dataset([([1, 5, 6], [1, 3, 4], [0, 0, 1], 1, 1), ([1, 9], [1, 4], [0, 1], 2, 3)])


def test_written_arrays_are_mapped_back_unchanged(tmp_path):
    store_dataset(SMALL, tmp_path / "dataset", tmp_path / "store")
    again = read_dataset(tmp_path / "dataset")
    for name, kind in ARRAYS.items():
        assert isinstance(getattr(again, name), np.memmap)
        assert getattr(again, name).dtype == kind
        np.testing.assert_array_equal(getattr(again, name), getattr(SMALL, name))
    assert again.read([1, 0]).ids.tolist() == [1, 9, 1, 5, 6]


def test_a_mapped_dataset_crosses_to_a_process_as_a_path(tmp_path):
    many = make_dataset([([1, n + 2], [1, 4], [0, 1], 1, 1) for n in range(1500)])
    store_dataset(many, tmp_path / "dataset", tmp_path / "store")
    pickled = pickle.dumps(read_dataset(tmp_path / "dataset"))
    assert len(pickled) < 1000
    assert pickle.loads(pickled).read([7]).ids.tolist() == [1, 9]


def test_missing_shards_are_named_and_a_store_can_move(tmp_path):
    store_dataset(SMALL, tmp_path / "dataset", tmp_path / "store")
    assert find_missing_shards(read_dataset(tmp_path / "dataset")) == []
    (tmp_path / "store").rename(tmp_path / "moved")
    assert find_missing_shards(read_dataset(tmp_path / "dataset")) == ["toy"]
    point_at_store(tmp_path / "dataset", tmp_path / "moved")
    assert read_dataset(tmp_path / "dataset").read([0]).ids.tolist() == [1, 5, 6]


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in ARRAYS), "dataset.json", "store.json"])
@pytest.mark.parametrize("keep", [None, 0, 20])
def test_a_half_written_dataset_is_never_taken_as_complete(tmp_path, name, keep):
    store_dataset(SMALL, tmp_path / "d", tmp_path / "store")
    path = tmp_path / "d" / name
    if keep is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="delete it and prepare again"):
        read_dataset(tmp_path / "d")


def test_the_hash_covers_all_a_batch_can_hold(tmp_path):
    store_dataset(SMALL, tmp_path / "d", tmp_path / "store")
    dataset = read_dataset(tmp_path / "d")
    hashes = {hash_dataset(dataset)}
    for name in HASHED:
        array = np.array(getattr(dataset, name))
        array[-1] += 1
        hashes.add(hash_dataset(msgspec.structs.replace(dataset, **{name: array})))
    shards = msgspec.structs.replace(dataset.facts.shards, digests=("other",))
    for change in (
        {"languages": ("", "en", "sv")}, {"pad_id": 9}, {"sources": ("", "b", "z")}, {"prompt_weights": (0.5,)},
        {"shards": shards},
    ):  # fmt: skip
        facts = msgspec.structs.replace(dataset.facts, **change)
        hashes.add(hash_dataset(msgspec.structs.replace(dataset, facts=facts)))
    assert len(hashes) == 1 + len(HASHED) + 5


def test_where_rows_stand_and_what_files_are_called_changes_nothing_that_is_trained(tmp_path):
    moved = msgspec.structs.replace(SMALL, line=SMALL.line + 1)
    moved = msgspec.structs.replace(moved, facts=msgspec.structs.replace(moved.facts, files=("other",)))
    assert hash_dataset(moved) == hash_dataset(SMALL)
