"""`polytune import` and `export` as a user runs them: what comes out, and what is left after an error."""

import json
import shutil

import numpy as np
import pytest
from hub_models import END_OF_TEXT, END_OF_TURN, write_hub_model
from programs import run_polytune

from data.tokenizer import load_tokenizer
from model.hf.tensors import open_folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    return write_hub_model(tmp_path_factory.mktemp("hub") / "tiny", shard_bytes=9000, float32_norms=True)


@pytest.fixture(scope="module")
def imported(hub, tmp_path_factory):
    """On eight devices, the vocabulary padded to a multiple of 64."""
    out = tmp_path_factory.mktemp("run") / "imported"
    done = run_polytune("import", hub, out, "--vocab-multiple", 64, devices=8)
    assert "imported llama: 12,560 parameters in float32, 50 rows of vocabulary padding" in done.stdout
    return out


@pytest.fixture(scope="module")
def exported(imported, tmp_path_factory):
    out = tmp_path_factory.mktemp("hub") / "exported"
    done = run_polytune("export", imported, out, "--max-shard-size", "9KB")
    assert "every tensor read back and equal" in done.stdout
    return out


def answers(model):
    """What it says, and nothing else."""
    done = run_polytune("generate", model, "--prompt", "hello", "--prompt", "a longer world", "--max-new-tokens", 12)
    assert done.stdout.count("\n") > 3
    return done.stdout


def test_import_and_export_give_every_tensor_back_byte_for_byte(hub, exported):
    """Peers' exporters fail on padded vocabularies, or write padding that nobody else can load."""
    before, after = open_folder(hub), open_folder(exported)
    assert set(before.names) == set(after.names)
    for name in before.names:
        assert before.read(name).tobytes() == after.read(name).tobytes(), name
        assert before.dtype(name) == after.dtype(name)
    assert len(after.files) > 1


def test_the_folder_around_the_tensors_comes_back_too(hub, exported):
    assert json.loads((exported / "config.json").read_text()) == json.loads((hub / "config.json").read_text()) | {
        "torch_dtype": "bfloat16"
    }
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (exported / name).read_bytes() == (hub / name).read_bytes()
    assert json.loads((exported / "generation_config.json").read_text()) == {
        "eos_token_id": [END_OF_TURN, END_OF_TEXT], "pad_token_id": load_tokenizer(hub).pad_id, "top_p": 0.9,
    }  # fmt: skip
    card = (exported / "README.md").read_text()
    assert "LlamaForCausalLM" in card
    assert "not trained" in card


def test_folder_checkpoint_and_export_say_the_same(hub, imported, exported):
    assert answers(hub) == answers(imported) == answers(exported)


def test_a_folder_can_be_trained_evaluated_and_exported(hub, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
run: {{dir: {tmp_path}/run}}
model: {hub}
data:
  sources: [{{kind: cldr, languages: [en, sw], tasks: [weekday_after], facts: 3}}]
  packing: {{row_length: 256}}
optim: {{learning_rate: 1e-2, warmup_steps: 1}}
train: {{steps: 4, batch_rows: 8, trackers: []}}
mesh: {{fsdp: 4, tensor: 2}}
"""
    )
    run_polytune("train", recipe, devices=8)
    run_polytune("eval", tmp_path / "run", "--tasks", "facts", "--limit", 1)
    out = tmp_path / "tuned"
    run_polytune("export", tmp_path / "run", out)
    card = (out / "README.md").read_text()
    assert "Swahili (`sw`)" in card
    assert "| started from |" in card
    assert "### facts (exact_match, higher is better)" in card
    before, after = open_folder(hub), open_folder(out)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert after.dtype(name) == before.dtype(name)
    assert not np.array_equal(after.read(name), before.read(name))
    assert answers(tmp_path / "run") != answers(hub)


def test_a_folder_is_evaluated_without_being_imported(hub, tmp_path):
    run_polytune("eval", hub, "--tasks", "facts", "--limit", 1, "--output", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["config"]["checkpoint"] == "tiny/0"
    assert results["groups"]["facts"]["sample_len"] > 30


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: cut(folder / "model-00002-of-00004.safetensors"), "model-00002-of-00004.safetensors"),
        (lambda folder: (folder / "model-00003-of-00004.safetensors").unlink(), "model-00003-of-00004.safetensors"),
        (lambda folder: edit(folder / "config.json", num_hidden_layers=3), "model.layers.2."),
        (lambda folder: edit(folder / "config.json", num_hidden_layers=1), "model.layers.1."),
        (lambda folder: edit(folder / "config.json", intermediate_size=25), "mlp.down_proj.weight"),
        (lambda folder: edit(folder / "config.json", model_type="rwkv"), "rwkv"),
        (lambda folder: edit(folder / "config.json", attention_sinks=4), "attention_sinks"),
        (lambda folder: edit(folder / "config.json", hidden_act="mish"), "hidden_act"),
        (lambda folder: edit(folder / "config.json", vocab_size=200), "200"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
    ],
    ids=[
        "truncated", "shard missing", "tensor missing", "tensor left over", "wrong shape", "unknown family",
        "unknown key", "unknown activation", "vocabulary", "no tokenizer", "no config",
    ],
)  # fmt: skip
def test_a_bad_folder_is_one_message_and_nothing_is_left_under_the_name(tmp_path, damage, message):
    folder = write_hub_model(tmp_path / "hub", shard_bytes=6000)
    damage(folder)
    done = run_polytune("import", folder, tmp_path / "out", check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub"]


def test_an_export_that_cannot_be_written_leaves_nothing(imported, tmp_path):
    done = run_polytune(
        "export", imported, tmp_path / "out", "--dtype", "float16", "--max-shard-size", "0GB", check=False
    )
    assert done.returncode == 2
    assert "0GB" in done.stderr
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("do not touch")
    done = run_polytune("export", imported, tmp_path / "taken", check=False)
    assert done.returncode == 2
    assert "already exists" in done.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine.txt", "taken"]


def test_a_model_without_a_template_asks_for_one(tmp_path):
    folder = write_hub_model(tmp_path / "hub", template=None)
    done = run_polytune("generate", folder, "--prompt", "hello", check=False)
    assert done.returncode == 2
    assert "--template" in done.stderr
    assert "chatml" in done.stderr
    run_polytune("generate", folder, "--prompt", "hello", "--template", "chatml", "--max-new-tokens", 2)
    run_polytune("import", folder, tmp_path / "run")
    run_polytune("export", tmp_path / "run", tmp_path / "again")


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


RECIPE = """
run: {{dir: {run}}}
model: {model}
data:
  sources: [{{kind: cldr, languages: [en], tasks: [weekday_after], facts: 3}}]
  packing: {{row_length: 256}}
optim: {{learning_rate: 1e-2, warmup_steps: 1}}
train: {{steps: {steps}, batch_rows: 8, trackers: []}}
checkpoint: {{save_every: 2}}
"""


def write_recipe(tmp_path, *, model, steps=4):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(run=tmp_path / "run", model=model, steps=steps))
    return path


def forget_last_step(run):
    shutil.rmtree(run / "checkpoints" / "4")


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_model_when_its_start_has_changed_or_gone(tmp_path):
    """Reading the folder again on resume would swap the architecture under half-trained parameters."""
    folder, run = write_hub_model(tmp_path / "hub"), tmp_path / "run"
    recipe = write_recipe(tmp_path, model=folder)
    run_polytune("train", recipe)
    kept = (folder / "config.json").read_text()
    forget_last_step(run)
    edit(folder / "config.json", rope_theta=500.0)
    done = run_polytune("train", recipe, check=False)
    assert done.returncode == 2
    assert "is not what" in done.stderr and "was started from" in done.stderr
    (folder / "config.json").write_text(kept)
    folder.rename(tmp_path / "moved")
    assert "resumed from checkpoint 2" in run_polytune("train", recipe).stdout


@pytest.mark.slow
def test_a_run_from_a_folder_goes_on_on_another_mesh(tmp_path):
    """Padding the vocabulary by the mesh of the day would make the checkpoint another model's."""
    folder = write_hub_model(tmp_path / "hub", vocab_size=271)
    recipe = write_recipe(tmp_path, model=folder)
    run_polytune("train", recipe, "mesh.fsdp=2", devices=2)
    forget_last_step(tmp_path / "run")
    done = run_polytune("train", recipe, "mesh.fsdp=1", "mesh.tensor=2", devices=2)
    assert "resumed from checkpoint 2" in done.stdout


def test_training_into_an_imported_model_s_folder_says_what_to_do(imported, tmp_path):
    shutil.copytree(imported, tmp_path / "run")
    done = run_polytune("train", write_recipe(tmp_path, model=tmp_path / "run"), check=False)
    assert done.returncode == 2
    assert "holds an imported model, not a run" in done.stderr
    assert not (tmp_path / "run" / "plan").exists()


@pytest.mark.slow
def test_stop_ids_of_a_model_mean_nothing_to_another_tokenizer(hub, tmp_path):
    """Its end of turn may be any piece of text there, and answers would end in the middle of a word."""
    folder = write_hub_model(tmp_path / "hub", vocab_size=400)
    source = tmp_path / "other"
    run_polytune("train", write_recipe(tmp_path, model="{num_layers: 1, dim: 16, num_heads: 2, num_kv_heads: 1, "
                 "head_dim: 8, mlp_dim: 16}", steps=2), "tokenizer.vocab_size=380", f"run.dir={source}")  # fmt: skip
    recipe = write_recipe(tmp_path, model=folder, steps=2)
    run_polytune("train", recipe, f"tokenizer.path={source / 'tokenizer'}")
    run_polytune("export", tmp_path / "run", tmp_path / "out")
    tokenizer = load_tokenizer(source / "tokenizer")
    for name in ("generation_config.json", "config.json"):
        written = json.loads((tmp_path / "out" / name).read_text())
        assert written["eos_token_id"] in (tokenizer.eos_id, [tokenizer.eos_id])
        assert written["pad_token_id"] == tokenizer.pad_id


@pytest.mark.parametrize("multiple", [0, -64, 10**8])
def test_a_vocabulary_multiple_that_makes_no_sense_is_refused(hub, tmp_path, multiple):
    done = run_polytune("import", hub, tmp_path / "out", "--vocab-multiple", multiple, check=False)
    assert done.returncode == 2
    assert f"--vocab-multiple {multiple}" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("eos", [[[266]], {"a": 1}, "<|im_end|>", -1, True, 266.5])
def test_stop_ids_that_are_no_ids_are_refused(tmp_path, eos):
    folder = write_hub_model(tmp_path / "hub")
    edit(folder / "generation_config.json", eos_token_id=eos)
    done = run_polytune("generate", folder, "--prompt", "hello", check=False)
    assert done.returncode == 2
    assert "eos_token_id" in done.stderr and "Traceback" not in done.stderr
