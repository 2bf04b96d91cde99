"""A run directory holds one complete plan or none, and a restart reads it back instead of making another."""

import json
import os
import shutil

import msgspec
import numpy as np
import pytest

from data import fingerprint
from data import prepare as preparing
from data.chat import SHIPPED, load_chat, save_chat
from data.config import DataConfig, PackingConfig, TokenizerConfig
from data.fingerprint import fingerprint_inputs
from data.mixture_config import MixtureConfig, PinchConfig
from data.pipeline import make_batches
from data.prepare import Watch, prepare
from data.schema import DataError
from data.source_config import FileSource, LanguageRule, MessageTemplate
from data.tokenizer import save_tokenizer, train_tokenizer

TOKENIZER = TokenizerConfig(vocab_size=320)
QUESTIONS = [("en", "what is %d and one?", "it is %d"), ("sw", "%d na moja ni nini?", "ni %d")]


def write_rows(folder, *, count=40, extra=()):
    rows = [
        json.dumps({"q": question % n, "a": answer % (n + 1), "lang": language})
        for language, question, answer in QUESTIONS
        for n in range(count)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("\n".join([*rows, *extra]) + "\n", encoding="utf-8")


def make_config(root, **fields):
    source = FileSource(
        name="sums",
        path="rows.jsonl",
        messages=(
            MessageTemplate(role="user", content="{{ q }}"),
            MessageTemplate(role="assistant", content="{{ a }}"),
        ),
        language=LanguageRule(field="lang"),
    )
    packing = PackingConfig(row_length=64, block_examples=32, overlong="drop")
    return DataConfig(**{"sources": (source,), "root": str(root), "packing": packing, **fields})


@pytest.fixture
def root(tmp_path):
    write_rows(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run_dir(tmp_path):
    return tmp_path / "run"


def run(config, run_dir, *, steps=6, batch_rows=2, seed=0, tokenizer=TOKENIZER, **more):
    return prepare(
        config,
        tokenizer,
        steps=steps,
        batch_rows=batch_rows,
        seed=seed,
        run_dir=run_dir,
        store=run_dir.parent / "store",
        **more,
    )


def train_on(run_dir):
    """Leaves what a run that was trained on has."""
    (run_dir / "checkpoints" / "5").mkdir(parents=True)


def forbid_building(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("the sources were loaded again")

    monkeypatch.setattr(preparing, "open_sources", fail)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_prepared_agrees_and_lies_in_the_run_directory(root, run_dir):
    dataset, plan, tokenizer, chat = run(make_config(root), run_dir)
    assert (chat.tokenizer, chat.hash) == (tokenizer, dataset.facts.template_hash)
    assert sorted(os.listdir(run_dir)) == ["plan", "tokenizer"]
    assert len(dataset) == 80
    assert dataset.facts.tokenizer_hash == tokenizer.hash
    assert plan.rows == 12
    table = json.loads((run_dir / "plan" / "plan.json").read_text())
    assert table["tokenizer_hash"] == tokenizer.hash
    assert [(cell["language"], cell["examples"]) for cell in table["cells"]] == [("en", 40), ("sw", 40)]
    assert (run_dir / "plan" / "bad_rows.jsonl").read_bytes() == b""
    batches = list(make_batches(run_dir / "plan", start_row=0, batch_rows=2))
    assert len(batches) == 6
    assert tokenizer.decode(dataset.read([0]).ids.tolist()) == "what is 0 and one?it is 1"


def test_a_restart_reads_back_and_loads_nothing(root, run_dir, monkeypatch):
    first = run(make_config(root), run_dir)
    before = contents(run_dir)
    forbid_building(monkeypatch)
    again = run(msgspec.structs.replace(make_config(root), workers=2, prefetch=7), run_dir)
    assert again.plan.hash == first.plan.hash
    assert again.plan.row_examples.tolist() == first.plan.row_examples.tolist()
    assert contents(run_dir) == before


def test_two_run_directories_of_one_recipe_are_equal_byte_for_byte(root, run_dir, tmp_path):
    run(make_config(root), run_dir)
    run(make_config(root), tmp_path / "other")
    assert contents(run_dir) == contents(tmp_path / "other")


@pytest.mark.parametrize("steps, batch_rows", [(20, 2), (3, 2), (6, 4)])
def test_more_or_fewer_steps_keep_the_rows_already_served(root, run_dir, monkeypatch, steps, batch_rows):
    first = run(make_config(root), run_dir)
    rows = np.array(first.plan.row_examples)
    forbid_building(monkeypatch)
    again = run(make_config(root), run_dir, steps=steps, batch_rows=batch_rows)
    assert again.plan.rows == steps * batch_rows
    assert again.plan.hash == first.plan.hash
    shared = min(len(rows), len(again.plan.row_examples))
    assert again.plan.row_examples[:shared].tolist() == rows[:shared].tolist()
    assert again.plan.summary["steps"] == steps
    assert sorted(os.listdir(run_dir)) == ["plan", "tokenizer"]


@pytest.mark.parametrize("moment", ["write_dataset", "write_plan", "write_bad_rows"])
def test_a_run_killed_while_preparing_leaves_nothing_that_looks_complete(root, run_dir, monkeypatch, moment):
    def die(*_, **__):
        raise KeyboardInterrupt

    # A kill leaves the scratch folder behind, too: no clean-up ran.
    monkeypatch.setattr(preparing.tempfile, "TemporaryDirectory", LeftBehind)
    monkeypatch.setattr(preparing, moment, die)
    with pytest.raises(KeyboardInterrupt):
        run(make_config(root), run_dir)
    assert not (run_dir / "plan").exists()
    monkeypatch.undo()
    assert run(make_config(root), run_dir).plan.rows == 12
    assert sorted(os.listdir(run_dir)) == ["plan", "tokenizer"]


class LeftBehind:
    """A temporary directory that nobody removes."""

    def __init__(self, *, dir, prefix):  # noqa: A002
        self.path = dir / f"{prefix}killed"

    def __enter__(self):
        self.path.mkdir()
        return self.path

    def __exit__(self, *_):
        return False


def test_touched_files_with_the_same_rows_go_on_with_the_same_plan(root, run_dir):
    first = run(make_config(root), run_dir)
    os.utime(root / "rows.jsonl", ns=(1, 1))
    assert run(make_config(root), run_dir).plan.hash == first.plan.hash


def test_a_moved_data_folder_is_the_same_recipe(root, run_dir, tmp_path, monkeypatch):
    first = run(make_config(root), run_dir)
    shutil.copytree(root, tmp_path / "moved")
    forbid_building(monkeypatch)
    assert run(make_config(tmp_path / "moved"), run_dir).plan.hash == first.plan.hash


@pytest.mark.parametrize(
    "change",
    [
        {"mixture": MixtureConfig(temperature=5.0, language_weights={"sw": 2.0})},
        {"packing": PackingConfig(row_length=96, block_examples=32)},
    ],
)
def test_a_run_directory_of_another_recipe_is_refused_and_left_as_it_is(root, run_dir, change):
    run(make_config(root), run_dir)
    train_on(run_dir)
    before = contents(run_dir)
    with pytest.raises(DataError, match=r"belongs to another recipe: .*Set run.dir to a new folder"):
        run(make_config(root, **change), run_dir)
    assert contents(run_dir) == before


def test_another_seed_is_another_run(root, run_dir):
    run(make_config(root), run_dir)
    train_on(run_dir)
    with pytest.raises(DataError, match="belongs to another recipe"):
        run(make_config(root), run_dir, seed=1)


def test_changed_rows_are_another_run(root, run_dir):
    run(make_config(root), run_dir)
    train_on(run_dir)
    write_rows(root, count=41)
    with pytest.raises(DataError, match="belongs to another recipe"):
        run(make_config(root), run_dir)


def test_an_exchanged_tokenizer_is_refused(root, run_dir):
    run(make_config(root), run_dir)
    other = train_tokenizer(["quite another text"], TokenizerConfig(vocab_size=300))
    save_tokenizer(other, run_dir / "tokenizer")
    with pytest.raises(DataError, match="restore the tokenizer"):
        run(make_config(root), run_dir)


def test_a_damaged_plan_is_refused(root, run_dir):
    run(make_config(root), run_dir)
    (run_dir / "plan" / "row_examples.npy").write_bytes(b"")
    with pytest.raises(DataError, match="delete it"):
        run(make_config(root), run_dir)


def test_a_run_keeps_its_template_and_refuses_another(root, run_dir, monkeypatch):
    plain = TokenizerConfig(vocab_size=320, template="plain")
    first = run(make_config(root), run_dir, tokenizer=plain)
    train_on(run_dir)
    text = first.tokenizer.decode(first.dataset.read([0]).ids.tolist())
    assert text == "User:\nwhat is 0 and one?\n\nAssistant:\nit is 1\n\n"
    assert first.plan.summary["template_hash"] == first.chat.hash
    with pytest.raises(DataError, match="belongs to another recipe"):
        run(make_config(root), run_dir)
    forbid_building(monkeypatch)
    assert run(make_config(root), run_dir, tokenizer=plain).chat.hash == first.chat.hash
    save_chat(load_chat(first.tokenizer), run_dir / "tokenizer")
    with pytest.raises(DataError, match=r"chat template of hash .* restore the folder"):
        run(make_config(root), run_dir, tokenizer=plain)


def test_a_run_that_starts_from_another_runs_tokenizer_takes_its_template_with_it(root, run_dir, tmp_path):
    first = run(make_config(root), run_dir, tokenizer=TokenizerConfig(vocab_size=320, template="plain"))
    given = TokenizerConfig(path=str(run_dir / "tokenizer"))
    second = run(make_config(root), tmp_path / "second", tokenizer=given)
    assert second.chat.hash == first.chat.hash
    assert second.dataset.facts.hash == first.dataset.facts.hash


def test_a_template_file_is_read_again_when_it_changes(root, run_dir, tmp_path):
    source = (SHIPPED / "plain.jinja").read_text(encoding="utf-8")
    (tmp_path / "mine.jinja").write_text(source, encoding="utf-8")
    given = TokenizerConfig(vocab_size=320, template=str(tmp_path / "mine.jinja"))
    before = fingerprint_inputs(make_config(root), given, 0)
    run(make_config(root), run_dir, tokenizer=given)
    train_on(run_dir)
    (tmp_path / "mine.jinja").write_text(source.replace("capitalize", "upper"), encoding="utf-8")
    assert fingerprint_inputs(make_config(root), given, 0) != before
    with pytest.raises(DataError, match="belongs to another recipe"):
        run(make_config(root), run_dir, tokenizer=given)


def test_ids_a_model_stops_at_are_kept_with_the_run(root, run_dir):
    config = make_config(root)
    prepared = run(config, run_dir, extra_stop_ids=(300,))
    train_on(run_dir)
    assert prepared.chat.stop_ids == (prepared.tokenizer.end_id, 300)
    with pytest.raises(DataError, match=r"another chat template .* stop ids \(2, 300\)"):
        run(config, run_dir)


def test_a_tokenizer_can_be_given(root, run_dir, tmp_path):
    given = train_tokenizer(["what is it? ni nini?"], TokenizerConfig(vocab_size=300))
    save_tokenizer(given, tmp_path / "given")
    prepared = run(make_config(root), run_dir, tokenizer=TokenizerConfig(path=str(tmp_path / "given")))
    assert prepared.tokenizer.hash == given.hash


BAD = json.dumps({"q": "1 and one?", "a": " ", "lang": "sw"})


def test_a_bad_row_stops_the_run_before_anything_is_written(root, run_dir):
    write_rows(root, extra=[BAD])
    with pytest.raises(DataError, match=r"rows.jsonl:81: .*set data.bad_rows to skip"):
        run(make_config(root), run_dir)
    assert os.listdir(run_dir) == []


def test_skipped_rows_are_written_with_reasons_and_counted_by_language(root, run_dir):
    write_rows(root, extra=[BAD, '{"q": '])
    plan = run(make_config(root, bad_rows="skip"), run_dir).plan
    rows = [json.loads(line) for line in (run_dir / "plan" / "bad_rows.jsonl").read_text().splitlines()]
    assert sorted((row["file"], row["line"]) for row in rows) == [("rows.jsonl", 81), ("rows.jsonl", 82)]
    assert all(row["reason"] for row in rows)
    assert plan.summary["bad_rows"] == {"sw": 1, "": 1}


def test_losing_more_than_allowed_refuses_the_run(root, run_dir):
    """A recipe whose rows are mostly too long would train on a tenth of its data and call it a success."""
    long = {"q": "1 " * 60, "a": "2 " * 60, "lang": "en"}
    write_rows(root, extra=[json.dumps(long)] * 20)
    with pytest.raises(DataError, match=r"would lose 20.0% of its rows \(20 longer than a row, 0 bad\)"):
        run(make_config(root), run_dir)
    plan = run(make_config(root, max_dropped=0.5), run_dir).plan
    assert plan.summary["dropped"] == {"en": 20}


def test_every_row_too_long_is_an_error_that_says_what_would_fit(root, run_dir):
    config = make_config(root, packing=PackingConfig(row_length=8, overlong="drop"), max_dropped=1.0)
    with pytest.raises(DataError, match=r"all 80 are longer than data.packing.row_length=8 .*so set it to \d+"):
        run(config, run_dir)


def test_the_fingerprint_notices_every_setting_that_matters(root):
    config = make_config(root)
    base = fingerprint_inputs(config, TOKENIZER, 0)
    assert fingerprint_inputs(config, TOKENIZER, 0) == base
    assert fingerprint_inputs(make_config(root, workers=4, prefetch=5), TOKENIZER, 0) == base
    others = [
        fingerprint_inputs(config, TOKENIZER, 1),
        fingerprint_inputs(config, TokenizerConfig(vocab_size=400), 0),
        fingerprint_inputs(make_config(root, bad_rows="skip"), TOKENIZER, 0),
        fingerprint_inputs(make_config(root, mixture=MixtureConfig(unit="tokens")), TOKENIZER, 0),
    ]
    with open(root / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    others.append(fingerprint_inputs(config, TOKENIZER, 0))
    assert len({base, *others}) == 6


def test_a_changed_plan_is_taken_where_the_recipe_says_so(root, run_dir):
    first = run(make_config(root), run_dir)
    train_on(run_dir)
    notices = []
    changed = make_config(root, mixture=MixtureConfig(language_weights={"sw": 3.0}), changed_plan="accept")
    second = run(changed, run_dir, watch=Watch(notice=notices.append))
    assert second.plan.hash != first.plan.hash
    assert f"the plan changes from {first.plan.hash[:12]} to {second.plan.hash[:12]}" in notices[-1]
    with pytest.raises(DataError, match="another tokenizer"):
        run(changed, run_dir, tokenizer=TokenizerConfig(vocab_size=340))


def test_a_language_all_of_whose_rows_are_bad_is_an_error_that_shows_one(root, run_dir):
    """`every row of zu was skipped` without a place sends people through millions of rows."""
    write_rows(root, extra=[json.dumps({"q": "1 and one?", "a": " ", "lang": "zu"})])
    with pytest.raises(DataError, match=r"every row of zu was skipped as bad, .*\(zu: rows.jsonl:81: empty assistant"):
        run(make_config(root, bad_rows="skip"), run_dir)
    assert os.listdir(run_dir) == []


def test_another_python_with_other_unicode_tables_makes_its_own(root, monkeypatch):
    """Normal forms and cases, which duplicates and phrases are found by, are Python's and change with it."""
    base = fingerprint_inputs(make_config(root), TOKENIZER, 0)
    monkeypatch.setattr(fingerprint.unicodedata, "unidata_version", "99.0.0")
    fingerprint._versions_and_code.cache_clear()
    other = fingerprint_inputs(make_config(root), TOKENIZER, 0)
    fingerprint._versions_and_code.cache_clear()
    assert other != base


@pytest.mark.parametrize("changed", [{"seed": 1}, {"tokenizer": TokenizerConfig(vocab_size=340)}])
def test_a_recipe_may_change_after_prepare_as_long_as_nothing_was_trained(root, run_dir, changed):
    """Look at the plan, change a weight, look again: no new folder each time."""
    first = run(make_config(root), run_dir)
    notices = []
    second = run(make_config(root), run_dir, watch=Watch(notice=notices.append), **changed)
    assert second.plan.hash != first.plan.hash
    assert any("nothing was trained on it yet" in notice for notice in notices)
    train_on(run_dir)
    with pytest.raises(DataError, match="belongs to another recipe"):
        run(make_config(root), run_dir)


def test_another_number_of_steps_is_refused_where_it_would_move_rows_already_served(root, run_dir):
    """A pinch is spread over the whole run; more steps once replaced 72 of the first 100 rows without a word."""
    pinch = MixtureConfig(pinch=(PinchConfig(languages=("sw",), examples=4),))
    config = make_config(root, mixture=pinch)
    run(config, run_dir, steps=20)
    train_on(run_dir)
    with pytest.raises(DataError, match="belongs to another recipe"):
        run(config, run_dir, steps=30)
