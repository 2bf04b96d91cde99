import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import msgspec
import pytest

from data.chat import load_chat, save_chat
from data.cldr import cldr_conversations
from data.config import TokenizerConfig
from data.control_template import template_hash
from data.procedural import procedural_conversations
from data.schema import DataError
from data.source_config import CldrSource, ProceduralSource
from data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from eval.config import EvalConfig, EvalError
from eval.results import read_results
from eval.run import main, run_eval
from model.checkpoint import CheckpointError
from model.config import ModelConfig
from model.parallel import AxisRules, MeshConfig, make_mesh
from model.transformer import init
from train.config import CheckpointConfig
from train.saver import Saver
from train.state import TrainState

ROOT = Path(__file__).parents[2]
FACTS = CldrSource(languages=("fr", "sw", "th"), tasks=("weekday_after", "month_number"), facts=4)
RULES = ProceduralSource(languages=("fr", "sw", "th"), examples=30)


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory):
    """A run with checkpoints at steps 0 and 5, written on 8 devices by training's own code."""
    run = tmp_path_factory.mktemp("runs") / "small"
    conversations = cldr_conversations(FACTS) + procedural_conversations(RULES)
    texts = [turn.content for conversation in conversations for turn in conversation.turns]
    tokenizer = train_tokenizer(texts, TokenizerConfig(vocab_size=600))
    cfg = ModelConfig(
        vocab_size=-(-tokenizer.vocab_size // 8) * 8,
        num_layers=1,
        dim=16,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=16,
    )
    sources = [msgspec.to_builtins(FACTS), msgspec.to_builtins(RULES)]
    meta = {
        "model": msgspec.to_builtins(cfg),
        "recipe": {"data": {"sources": sources, "packing": {"row_length": 64}}},
        "tokenizer_hash": tokenizer.hash,
        "template_hash": template_hash(),
        "row_length": 64,
    }
    run.mkdir()
    save_tokenizer(tokenizer, run / "tokenizer")
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    with jax.set_mesh(mesh), Saver(run, CheckpointConfig(), meta=meta, plan_hash="plan") as saver:
        for step in (0, 5):
            params = jax.jit(init, static_argnums=(0, 1))(cfg, AxisRules(), jax.random.key(step))
            ema = jax.tree.map(lambda leaf: 0.5 * leaf, params) if step else None
            state = TrainState(jnp.int32(step), params, {"count": jnp.int32(step)}, ema)
            saver.save(state, step=step, next_row=8 * step)
    return run


def evaluate(run, tasks, **changes):
    mesh = changes.pop("mesh", MeshConfig(fsdp=8))
    return run_eval(EvalConfig(checkpoint=str(run), tasks=tasks, mesh=mesh, batch_tokens=2048, **changes))


def test_a_fresh_process_on_one_device_evaluates_without_train(run_dir, tmp_path):
    program = (
        "import os, sys, jax\n"
        "jax.config.update('jax_platforms', 'cpu')\n"
        "jax.config.update('jax_compilation_cache_dir', os.environ['POLYTUNE_CACHE'] + '/tests')\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)\n"
        "from eval.run import main\n"
        "code = main(sys.argv[1:])\n"
        "assert jax.device_count() == 1\n"
        "loaded = sorted(name for name in sys.modules if name.split('.')[0] in ('train', 'launch'))\n"
        "assert not loaded, loaded\n"
        "sys.exit(code)\n"
    )
    arguments = [
        str(run_dir),
        "--tasks",
        "heldout,rewrite",
        "--limit",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = json.loads((tmp_path / "out" / "results.json").read_text())
    assert built["config"]["step"] == 5 and built["config"]["devices"] == 1
    assert "macro average of 3" in done.stdout and "Kiswahili" in done.stdout
    here = evaluate(run_dir, ("heldout",), limit=2, output=str(tmp_path / "here"))
    for language in ("fr", "sw", "th"):
        there = built["results"][f"heldout_{language}"]["bits_per_byte,none"]
        assert here["results"][f"heldout_{language}"]["bits_per_byte,none"] == pytest.approx(there, rel=1e-4)


def test_the_average_of_parameters_has_results_of_its_own(run_dir, capsys):
    """Beside those of the last parameters, never over them; a checkpoint that has none says so before anything runs."""
    last = evaluate(run_dir, ("heldout",), limit=2)
    average = evaluate(run_dir, ("heldout",), limit=2, weights="ema")
    head = next(line.split() for line in capsys.readouterr().out.splitlines()[::-1] if "stderr" in line)
    assert "last" in head, "the column of the last parameters' scores"
    assert (run_dir / "eval" / "5-ema" / "results.json").is_file()
    assert (average["config"]["weights"], last["config"]["weights"]) == ("ema", "params")
    scores = [each["results"]["heldout_fr"]["bits_per_byte,none"] for each in (last, average)]
    assert abs(scores[0] - scores[1]) > 1e-3
    assert read_results(run_dir / "eval" / "5")["config"]["weights"] == "params"
    with pytest.raises(CheckpointError, match="holds no average of parameters"):
        evaluate(run_dir / "checkpoints" / "0", ("heldout",), limit=2, weights="ema")


def test_results_land_beside_the_run_and_say_what_they_are(run_dir, capsys):
    evaluate(run_dir / "checkpoints" / "0", ("facts",), limit=3)
    built = evaluate(run_dir, ("facts",), limit=3, mesh=MeshConfig(fsdp=4, tensor=2))
    assert json.loads((run_dir / "eval" / "5" / "results.json").read_text()) == built
    assert (run_dir / "eval" / "5" / "samples_facts.jsonl").is_file()
    assert built["config"]["checkpoint"] == "small/5" and built["config"]["max_length"] == 64
    assert built["chat_template_sha"] == template_hash()
    assert built["n-samples"]["facts_sw"] == {"original": 16, "effective": 3}
    assert built["configs"]["facts"]["sources"][0]["languages"] == ["fr", "sw", "th"]
    assert built["baselines"]["facts"].keys() == {"majority"}
    assert 0 < built["total_evaluation_time_seconds"] < 600
    assert "untrained" in capsys.readouterr().out


def test_the_same_evaluation_again_gives_the_same_numbers(run_dir, tmp_path):
    first = evaluate(run_dir, ("procedural",), limit=1, output=str(tmp_path / "a"))
    second = evaluate(run_dir, ("procedural",), limit=1, output=str(tmp_path / "b"))
    assert first["results"] == second["results"]
    samples = [(tmp_path / name / "samples_procedural.jsonl").read_bytes() for name in "ab"]
    assert samples[0] == samples[1]


def copy_run(run_dir, target):
    target.mkdir()
    for name in ("checkpoints", "tokenizer"):
        (target / name).symlink_to(run_dir / name)
    return target


def test_another_tokenizer_is_an_error(run_dir, tmp_path):
    other = copy_run(run_dir, tmp_path / "other")
    (other / "tokenizer").unlink()
    save_tokenizer(train_tokenizer(["something else"], TokenizerConfig(vocab_size=320)), other / "tokenizer")
    with pytest.raises(EvalError, match="put that run's own tokenizer folder back"):
        evaluate(other, ("facts",))


def test_another_template_is_an_error(run_dir, monkeypatch):
    monkeypatch.setattr("data.control_template.template_hash", lambda: "0" * 64)
    with pytest.raises(EvalError, match=r"chat template has hash 000000000000"):
        evaluate(run_dir, ("facts",))


def test_a_stored_template_other_than_that_of_training_is_an_error(run_dir, tmp_path):
    other = copy_run(run_dir, tmp_path / "other")
    (other / "tokenizer").unlink()
    shutil.copytree(run_dir / "tokenizer", other / "tokenizer")
    save_chat(load_chat(load_tokenizer(other / "tokenizer"), "plain"), other / "tokenizer")
    with pytest.raises(EvalError, match=r"put that run's own tokenizer folder back"):
        evaluate(other, ("facts",))


def test_missing_and_half_written_checkpoints_are_errors(run_dir, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        evaluate(tmp_path / "nowhere", ("facts",))
    half = tmp_path / "half"
    (half / "checkpoints" / "3" / "params").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="half-written"):
        evaluate(half, ("facts",))
    with pytest.raises(CheckpointError, match="half written"):
        evaluate(half / "checkpoints" / "3", ("facts",))


def test_missing_data_is_found_before_the_model_is_loaded(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.opening.load_params", None)
    with pytest.raises(EvalError, match=r"data_root .*nowhere does not exist"):
        evaluate(run_dir, ("sib200",), data_root=str(tmp_path / "nowhere"))
    with pytest.raises(EvalError, match=r"task sib200 reads sib200_topic_test.jsonl"):
        evaluate(run_dir, ("facts", "sib200"), data_root=str(tmp_path))
    (tmp_path / "sib200_topic_test.jsonl").write_text('{"text": "x", "category": "sports", "_lang": "en"}\n{oops\n')
    with pytest.raises(DataError, match=r"sib200_topic_test.jsonl:2"):
        evaluate(run_dir, ("sib200",), data_root=str(tmp_path))


def test_a_model_that_diverged_gives_an_error_not_a_score(run_dir, monkeypatch):
    from eval import opening

    load = opening.load_params
    monkeypatch.setattr(
        opening, "load_params", lambda *given, **named: jax.tree.map(lambda leaf: leaf * jnp.nan, load(*given, **named))
    )
    with pytest.raises(EvalError, match="not finite"):
        evaluate(run_dir, ("heldout",), limit=1)


def test_a_failure_loses_no_task_that_came_before_it(run_dir, tmp_path, monkeypatch):
    from eval import run

    grade = run.grade_task

    def fail_second(task, documents, **given):
        if task.name == "heldout":
            raise MemoryError
        return grade(task, documents, **given)

    monkeypatch.setattr(run, "grade_task", fail_second)
    with pytest.raises(MemoryError):
        evaluate(run_dir, ("facts", "heldout"), limit=1, output=str(tmp_path))
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["groups"].keys() == {"facts"} and kept["configs"]["facts"]["limit"] == 1
    assert (tmp_path / "samples_facts.jsonl").is_file()
    monkeypatch.undo()
    built = evaluate(run_dir, ("heldout",), limit=1, output=str(tmp_path))
    assert built["groups"].keys() == {"facts", "heldout"} and built["groups"]["facts"] == kept["groups"]["facts"]


def test_what_cannot_be_scored_or_written_is_found_before_the_model_is_loaded(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr("eval.opening.load_params", None)
    with pytest.raises(EvalError, match=r"task heldout: a document needs .* set max_length to"):
        evaluate(run_dir, ("facts", "heldout"), max_length=8)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(EvalError, match="damaged"):
        evaluate(run_dir, ("facts",), output=str(tmp_path))


def test_a_mesh_that_does_not_divide_the_model_says_which_size(run_dir):
    with pytest.raises(ValueError, match=r"model.num_kv_heads=2 is not divisible by mesh axis tensor=8"):
        evaluate(run_dir, ("facts",), mesh=MeshConfig(fsdp=1, tensor=8))


def test_the_program_prints_one_line_and_fails_for_a_wrong_request(run_dir, capsys):
    assert main([str(run_dir), "--tasks", "factz"]) == 2
    assert capsys.readouterr().err.startswith("error: no task is called 'factz'; did you mean facts?")
    assert main([str(run_dir), "--tasks", "facts", "--limit", "0"]) == 2
    assert "limit" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "python -m eval.run runs/demo --tasks facts,rewrite" in capsys.readouterr().out


def test_two_tasks_of_one_name_are_refused(run_dir, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("kind: heldout\nname: facts\nversion: 1\nsources: [{kind: cldr, split: heldout}]\n")
    with pytest.raises(EvalError, match="two of the tasks are called facts"):
        evaluate(run_dir, ("facts", str(path)))
