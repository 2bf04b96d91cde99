"""Two runs side by side: all that differs, nothing that does not, and numbers that can be checked by hand."""

import io
import json

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from eval.run_files import read_run
from launch.cli import main
from launch.compare import compare, facts_of, print_comparison, run_compare
from launch.recipe import decode_recipe, write_recipe

RECIPE = """
run: {dir: %(dir)s, seed: 1}
model: {num_layers: 1, dim: 8, num_heads: 2, num_kv_heads: 2, head_dim: 4, mlp_dim: 8}
data: {sources: [{kind: cldr, languages: [en, sw]}]}
optim: {learning_rate: %(rate)s}
train: {steps: 20, batch_rows: 4, trackers: []}
"""


def write_run(folder, *, name, rate="1e-3", loss=2.0, card=None, tokenizer="t1", more=()):
    """A run of twenty steps: of its loss, twice as much for Swahili as for English; `more` records come last."""
    run_dir = folder / name
    (run_dir / "eval/20").mkdir(parents=True)
    tree = YAML(typ="safe").load(RECIPE % {"dir": run_dir, "rate": rate})
    write_recipe(decode_recipe(tree, name), run_dir / "recipe.yaml")
    facts = {
        "name": name, "created": name, "train_seconds": len(name), "plan_hash": "p1", "tokenizer_hash": tokenizer,
        "versions": {"jax": "0.10.2", "flax": "0.12"}, "git": {"commit": "abc", "dirty": False}, "model": {"dim": 8},
    }  # fmt: skip
    (run_dir / "run_card.json").write_text(json.dumps(facts | (card or {})), encoding="utf-8")
    records = [{"kind": "start", "attempt": 1, "time": 10.0, "step": 0, "process_s": 10.0}]
    for step in range(1, 21):
        timed = {"step_s": 11.0, "compiled": True} if step == 1 else {"step_s": 1.0}
        late = loss if step > 18 else 9.0
        records.append(
            {"kind": "step", "attempt": 1, "time": 20.0 + step, "step": step, "loss": late, "weight": 4.0}
            | {"tokens_per_s": 100.0 + step, "padding": 0.25, **timed}
        )
        if step % 2 == 0:
            sums = {"loss_sum": {"en": 2 * late, "sw": 4 * late}, "weight": {"en": 3.0, "sw": 3.0}}
            records.append({"kind": "languages", "attempt": 1, "step": step, **sums, "tokens": {"en": 9, "sw": 9}})
    held = {"loss_sum": {"en": 4 * loss, "sw": 8 * loss}, "weight": {"en": 4.0, "sw": 4.0}}
    records.append({"kind": "held_out", "attempt": 1, "time": 40.0, "step": 20, "seconds": 0.0, **held})
    records += more
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    results = {
        "results": {"facts_en": {"exact_match,none": 0.25}}, "groups": {"facts": {"exact_match,none": loss / 8}},
        "group_subtasks": {"facts": ["facts_en"]}, "higher_is_better": {"facts": {"exact_match": True}},
    }  # fmt: skip
    (run_dir / "eval/20/results.json").write_text(json.dumps(results), encoding="utf-8")
    return run_dir


@pytest.fixture
def runs(tmp_path):
    a = write_run(tmp_path, name="a")
    newer = {"versions": {"jax": "0.11.0", "flax": "0.12"}, "git": {"commit": "abc", "dirty": True}}
    return a, write_run(tmp_path, name="b", rate="2e-3", loss=1.5, card=newer)


def show(compared):
    console = Console(file=io.StringIO(), width=120)
    print_comparison(compared, console)
    return console.file.getvalue()


def test_only_what_differs_is_listed_and_no_names_dates_or_folders(runs):
    compared = compare(*map(read_run, runs))
    assert [(item.key, item.a, item.b) for item in compared.differences] == [
        ("git.dirty", False, True),
        ("recipe.optim.learning_rate", 0.001, 0.002),
        ("versions.jax", "0.10.2", "0.11.0"),
    ]
    assert compared.notes == []


def test_numbers_are_those_of_the_last_tenth_and_of_steps_that_did_not_compile(runs):
    compared = compare(*map(read_run, runs))
    a, b = compared.summary_a, compared.summary_b
    assert a.numbers == pytest.approx(
        {
            "steps": 20, "loss, last tenth of the steps": 2.0, "held-out loss, mean of languages": 3.0,
            "real tokens/s, median": 111.0, "seconds a step, median": 1.0, "padding": 0.25, "goodput": 20 / 40,
            "wall time, s": 40.0, "attempts": 1,
        }
    )  # fmt: skip
    assert b.numbers["loss, last tenth of the steps"] == 1.5
    assert a.loss_by_language == pytest.approx({"en": 2 * 2 / 3, "sw": 4 * 2 / 3})
    assert b.held_out_by_language == {"en": 1.5, "sw": 3.0}
    assert (a.scores, b.scores) == ({"facts, exact match": 0.25}, {"facts, exact match": 0.1875})


def test_the_tables_show_both_runs_and_the_change(runs):
    text = show(compare(*map(read_run, runs)))
    assert "recipe.optim.learning_rate" in text and "0.002" in text
    (line,) = [line for line in text.splitlines() if "loss, last tenth of the steps" in line]
    assert line.split()[-3:] == ["2", "1.5", "-0.5"]
    swahili = [line for line in text.splitlines() if line.strip().startswith("sw")]
    assert len(swahili) == 2 and all("Kiswahili" in line for line in swahili)
    assert text.index("en  English") < text.index("sw  Kiswahili")  # the smallest fall first


def test_losses_per_token_of_two_tokenizers_come_with_a_warning(tmp_path):
    """A tokenizer of shorter pieces has a lower loss per token for the same model."""
    a, b = write_run(tmp_path, name="a"), write_run(tmp_path, name="b", tokenizer="t2")
    compared = compare(read_run(a), read_run(b))
    assert [item.key for item in compared.differences] == ["tokenizer_hash"]
    assert "the tokenizers differ: losses are per token" in show(compared)


def test_equal_runs_are_said_to_be_equal(tmp_path):
    a = write_run(tmp_path, name="a")
    text = show(compare(read_run(a), read_run(a)))
    assert "nothing differs" in text and "A: a" in text and "B: a" in text


def test_a_run_that_has_only_begun_is_compared_as_far_as_it_goes(runs, tmp_path):
    a, b = runs
    for name in ("run_card.json", "metrics.jsonl", "eval/20/results.json"):
        (b / name).unlink()
    compared = compare(read_run(a), read_run(b))
    assert compared.summary_b.numbers == {} and compared.summary_b.scores == {}
    assert {item.b for item in compared.differences if item.key.startswith("versions")} == {None}
    assert "recipe.model.dim" in facts_of(read_run(b)) and "model.dim" in facts_of(read_run(a))
    assert "–" in show(compared)


def test_a_run_that_skipped_steps_is_no_equal_of_one_that_did_not(tmp_path):
    """The spike's own loss, which no update followed, must not stand in the loss of the last tenth."""

    def skipped(step, why, loss):
        return {"kind": "step", "attempt": 1, "time": 20.0 + step, "step": step, "step_s": 1.0, "weight": 4.0} | {
            "skipped": why, "loss": loss,
        }  # fmt: skip

    faults = [
        skipped(5, "non_finite", None), skipped(9, "non_finite", None), skipped(19, "spike", 80.0),
        {"kind": "save_failed", "attempt": 1, "step": 6, "error": "no space left"},
    ]  # fmt: skip
    a, b = write_run(tmp_path, name="a"), write_run(tmp_path, name="b", more=faults)
    compared = compare(read_run(a), read_run(b))
    numbers = compared.summary_b.numbers
    assert compared.summary_b.faults == {
        "skipped steps: loss or gradient not finite": 2.0, "skipped steps: spike of loss or gradient": 1.0,
        "failed saves": 1.0,
    }  # fmt: skip
    assert numbers["loss, last tenth of the steps"] == 2.0
    assert numbers["goodput"] == pytest.approx(17 / 40) and compared.summary_a.numbers["goodput"] == 0.5
    lines = [" ".join(line.split()) for line in show(compared).splitlines()]
    assert "failed saves 0 1 +1" in lines and "skipped steps: spike of loss or gradient 0 1 +1" in lines
    assert "failed saves" not in show(compare(read_run(a), read_run(a)))


def test_a_run_without_records_is_not_said_to_have_skipped_nothing(tmp_path):
    failed = {"kind": "save_failed", "attempt": 1, "step": 6, "error": "no space left"}
    a, b = write_run(tmp_path, name="a"), write_run(tmp_path, name="b", more=[failed])
    (a / "metrics.jsonl").unlink()
    shown = show(compare(read_run(a), read_run(b)))
    assert "failed saves – 1 –" in [" ".join(line.split()) for line in shown.splitlines()]


def test_the_verb_writes_everything_as_json(runs, tmp_path, capsys):
    out = tmp_path / "comparison.json"
    assert main(["compare", *map(str, runs), "--json", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["summary_b"]["loss_by_language"]["sw"] == pytest.approx(2.0)
    assert len(written["differences"]) == 3
    assert main(["compare", str(runs[0]), str(tmp_path / "nowhere")]) == 2
    assert "is no directory; give the run directory" in " ".join(capsys.readouterr().err.split())


def test_a_folder_in_which_no_run_has_begun_is_no_equal_run(runs, tmp_path):
    """Data were prepared and the run refused: two such folders have nothing that differs."""
    (tmp_path / "refused" / "plan").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"refused holds no run: no run_card.json, no recipe.yaml"):
        run_compare(str(tmp_path / "refused"), str(tmp_path / "refused"), json_file=None, console=Console(quiet=True))


def test_a_field_that_an_earlier_version_did_not_have_is_no_difference(runs):
    """Every run begun before a field existed differed in it from every later one."""
    a, b = runs
    path = a / "recipe.yaml"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line for line in lines if "dropout:" not in line), encoding="utf-8")
    compared = compare(read_run(a), read_run(b))
    assert [item.key for item in compared.differences if item.key.startswith("recipe.")] == [
        "recipe.optim.learning_rate"
    ]
    assert compared.notes == ["a: recipe of an earlier version: 1 field took its default: train.dropout"]


def test_a_recipe_with_a_field_of_another_version_is_compared_as_it_is_written(runs):
    a, b = runs
    path = b / "recipe.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("dropout:", "dropped:"), encoding="utf-8")
    compared = compare(read_run(a), read_run(b))
    differing = {item.key: (item.a, item.b) for item in compared.differences}
    assert differing["recipe.train.dropped"] == (None, 0.0)
    assert differing["recipe.train.dropout"] == (0.0, None)
    assert "b: taken as written, without defaults" in compared.notes[0]
    assert "train.dropped: unknown key" in compared.notes[0]
