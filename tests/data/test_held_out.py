"""Held-out rows: never rows of training, few and even by language, the same however they are shared."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from toy_dataset import ToyExample, make_dataset

from data.batch import Role
from data.config import DataConfig, TokenizerConfig
from data.held_out import CHOSEN, FOLDER, HeldOutRows, find_shared, prepare_held_out, read_held_out
from data.prepare import Watch, prepare
from data.schema import DataError

TOKENIZER = TokenizerConfig(vocab_size=400)


def example(*ids, language=1):
    return ToyExample(ids, [Role.USER] * len(ids), [0.0] + [1.0] * (len(ids) - 1), language, 1)


def test_rows_are_shared_when_their_ids_are_the_same_whatever_their_language():
    ours = make_dataset([example(1, 5, 6), example(1, 5, 7), example(1, 5), example(1, 5, 6)])
    theirs = make_dataset([example(1, 5, 6, language=2), example(1, 5, 6, 7), example(1, 6)])
    assert find_shared(ours, theirs).tolist() == [True, False, False, True]
    assert find_shared(theirs, ours).tolist() == [True, False, False]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_parts_of_every_batch_together_are_the_batch(count):
    dataset = make_dataset([example(1, i, i + 1, i + 2) for i in range(5, 15)])
    rows = HeldOutRows(dataset, [[0, 1], [2], [3, 4], [5], [6, 7]], 8)
    whole = rows.batches(rows=4, index=0, count=1)
    parts = [rows.batches(rows=4, index=index, count=count) for index in range(count)]
    assert len(whole) == 2 and sum(int((batch.segments_BT > 0).sum()) for batch in whole) == 8 * 3
    for number, batch in enumerate(whole):
        joined = np.concatenate([part[number].tokens_BT for part in parts])
        np.testing.assert_array_equal(joined, batch.tokens_BT)


def rows_of(language, names):
    return [{"lang": language, "prompt": f"{language} {name}?", "completion": f"{name}!"} for name in names]


@pytest.fixture
def folder(tmp_path):
    """Training has ten rows of each language; held out are six of one, two of them trained on, and one of another."""
    sets = {
        "train": rows_of("en", "abcdefghij") + rows_of("sw", "klmnopqrst"),
        "held": rows_of("en", "ajuvwx") + rows_of("sw", "z"),
    }
    for name, rows in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return tmp_path


def source(name):
    return {"kind": "files", "name": name, "path": f"{name}.jsonl", "language": {"field": "lang"}}


def prepare_both(folder, *, examples=3, held="held"):
    """The run's rows of held-out data, and what was said while they were prepared."""
    fields = {
        "sources": [source("train")], "root": str(folder), "packing": {"row_length": 48},
        "held_out": {"sources": [source(held)], "examples": examples},
    }  # fmt: skip
    config, said = msgspec.convert(fields, DataConfig), []
    run_dir, store, watch = folder / "run", folder / "store", Watch(notice=said.append)
    prepared = prepare(
        config,
        TokenizerConfig(vocab_size=400),
        steps=2,
        batch_rows=2,
        seed=0,
        run_dir=run_dir,
        store=store,
        watch=watch,
    )
    prepare_held_out(
        config, training=prepared.dataset, run_dir=run_dir, store=store, seed=0, watch=watch
    )  # fmt: skip
    return config, prepared, said


def test_rows_that_are_trained_on_are_left_out_and_counted(folder):
    """A held-out loss over rows of the training set falls whatever the model learns of others."""
    config, prepared, said = prepare_both(folder)
    rows = read_held_out(config, training=prepared.dataset, run_dir=folder / "run")
    lines = {int(rows.dataset.line[index]) for members in rows.rows for index in members}
    assert lines == {3, 4, 5, 7}  # three of u v w x, and the only one in Swahili
    assert rows.languages == ("", "en", "sw")
    (notice,) = [text for text in said if "token for token" in text]
    assert "2 of 7 examples are trained on too" in notice and "(en 2)" in notice


def test_the_training_plan_does_not_know_what_is_held_out(folder):
    _, with_it, _ = prepare_both(folder)
    config = msgspec.convert(
        {"sources": [source("train")], "root": str(folder), "packing": {"row_length": 48}}, DataConfig
    )
    without = prepare(
        config, TokenizerConfig(vocab_size=400), steps=2, batch_rows=2, seed=0, run_dir=folder / "other",
        store=folder / "store",
    )  # fmt: skip
    assert with_it.plan.hash == without.plan.hash
    assert read_held_out(config, training=without.dataset, run_dir=folder / "other") is None


def test_a_restart_reads_what_was_chosen_and_another_number_chooses_anew(folder):
    prepare_both(folder)
    chosen = Path(folder / "run" / FOLDER / CHOSEN)
    before = chosen.stat().st_mtime_ns
    prepare_both(folder)
    assert chosen.stat().st_mtime_ns == before
    config, prepared, _ = prepare_both(folder, examples=1)
    rows = read_held_out(config, training=prepared.dataset, run_dir=folder / "run")
    assert sum(map(len, rows.rows)) == 2
    stale = msgspec.structs.replace(config, held_out=msgspec.structs.replace(config.held_out, examples=2))
    with pytest.raises(DataError, match=r"chosen.json does not belong to this run's data; delete"):
        read_held_out(stale, training=prepared.dataset, run_dir=folder / "run")


def test_holding_out_what_is_trained_on_is_refused(folder):
    with pytest.raises(DataError, match=r"every example of data.held_out is trained on too.*give sources that"):
        prepare_both(folder, held="train")
