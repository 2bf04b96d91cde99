"""What opening a source sees in its first rows decides how all are read, so it decides which shards are its own."""

import json

import pytest

from data import works
from data.config import DataConfig, PackingConfig, TokenizerConfig
from data.formats import reading
from data.prepare import prepare
from data.source_config import FileSource

ROWS = 300


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(reading, "CHUNK_ROWS", 100)
    monkeypatch.setattr(works, "WORK_ROWS", 100)


def make_rows():
    return [{"instruction": f"say {n}", "output": f"it is {n}", "language": "en"} for n in range(ROWS)]


def prepare_rows(rows, folder, *, store):
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = DataConfig(
        sources=(FileSource(name="sums", path="rows.jsonl"),),
        root=str(folder),
        packing=PackingConfig(row_length=64),
        bad_rows="skip",
        max_dropped=1.0,
        prepare_workers=0,
    )
    tokenizer = TokenizerConfig(path=str(folder.parent / "tokenizer"))
    if not (folder.parent / "tokenizer").exists():
        tokenizer = TokenizerConfig(vocab_size=320)
    return prepare(config, tokenizer, steps=200, batch_rows=2, seed=0, run_dir=folder / "run", store=store)


@pytest.fixture
def store(tmp_path):
    prepare_rows(make_rows(), tmp_path / "first", store=tmp_path / "other")
    (tmp_path / "first" / "run" / "tokenizer").rename(tmp_path / "tokenizer")
    return tmp_path / "store"


def test_a_shard_of_rows_read_by_other_columns_is_not_taken_again(store, tmp_path):
    """A late row has a field that no first row has, which is refused; then the first row is given one too."""
    rows = make_rows()
    rows[250]["context"] = "of late"
    before = prepare_rows(rows, tmp_path / "before", store=store)
    assert before.dataset.facts.bad_rows == {"en": 1}
    rows[0]["context"] = "from the beginning"
    after = prepare_rows(rows, tmp_path / "after", store=store)
    fresh = prepare_rows(rows, tmp_path / "fresh", store=tmp_path / "empty")
    assert (after.dataset.facts.bad_rows, len(after.dataset)) == ({}, ROWS)
    assert after.plan.hash == fresh.plan.hash


def test_a_shard_of_rows_whose_language_stood_in_another_field_is_not_taken_again(store, tmp_path):
    """First `language` names the language; when every first row has a more exact `lang_code`, that one does."""
    rows = make_rows()
    for row in rows[200:]:
        row["lang_code"] = "sw"
    before = prepare_rows(rows, tmp_path / "before", store=store)
    assert before.dataset.facts.languages == ("", "en")
    for row in rows[:200]:
        row["lang_code"] = "en"
    after = prepare_rows(rows, tmp_path / "after", store=store)
    fresh = prepare_rows(rows, tmp_path / "fresh", store=tmp_path / "empty")
    assert after.dataset.facts.languages == ("", "en", "sw")
    assert after.plan.hash == fresh.plan.hash


def test_more_rows_at_the_end_leave_the_shards_before_them_as_they_are(store, tmp_path):
    before = prepare_rows(make_rows(), tmp_path / "before", store=store).dataset.facts.shards
    more = [*make_rows(), {"instruction": "and", "output": "so on", "language": "en"}]
    after = prepare_rows(more, tmp_path / "after", store=store).dataset.facts.shards
    assert after.keys[: len(before.keys)] == before.keys
    assert len(after.keys) == len(before.keys) + 1
