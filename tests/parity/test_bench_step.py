"""The step benchmark against transformers, whole, at a size that takes seconds: it had rotted once, unnoticed."""

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from launch.config import Recipe
from launch.recipe import load_recipe
from tests.bench import decode, step
from tests.bench.same_work import NotTheSameWorkError, check_first
from tests.bench.start import MODEL_FOLDER, ROWS_FILE
from tests.bench.step_table import WARM_UP
from tests.bench.transformers_side import TransformersContender, flatten_inputs, pack_inputs
from tests.bench.worker import Contender, Machine, Outcome, Worker, find_device
from tests.bench.workload import Step, load_batches
from tests.launch.programs import write_tiny_recipe

STEPS = 2
OVERRIDES = ("model.embedding_scale=5.5", "model.vocab_padding=12", "train.microbatches=2")
"""A model that no Llama computes, its vocabulary padded as for a mesh that does not divide it."""
LAST_LOSS = 1e-3
"""Relative, after updates that were made from gradients of other roundings."""
MACHINE = Machine(device="cpu", cores=2, keep_memory=True, is_shared=True)


def load_tiny(folder: Path, *overrides: str) -> Recipe:
    path = write_tiny_recipe(folder, run_dir=folder / "unused", steps=40, save_every=10)
    return load_recipe(str(path), [*OVERRIDES, *overrides])


def run_step(folder: Path, *arguments: str) -> tuple[list[Outcome], str]:
    path = write_tiny_recipe(folder, run_dir=folder / "unused", steps=40, save_every=10)
    printed = io.StringIO()
    options = step.parse_options(
        ["--recipe", str(path), f"--steps={STEPS}", "--cores=2", "--device=cpu", *OVERRIDES, *arguments]
    )
    outcomes = step.run(options, folder / "scratch", Console(file=printed, width=200))
    return outcomes, printed.getvalue()


def check_outcomes(outcomes: list[Outcome], table: str) -> None:
    """Each contender made all steps, learned, and has the losses of every other."""
    assert [outcome.contender.side for outcome in outcomes] == ["polytune"] * 2 + ["transformers"] * 2
    losses_CS = np.array([[each.loss for each in outcome.steps] for outcome in outcomes])
    assert losses_CS.shape == (4, WARM_UP + STEPS)
    np.testing.assert_allclose(losses_CS, np.broadcast_to(losses_CS[0], losses_CS.shape), rtol=LAST_LOSS)
    assert np.ptp(losses_CS[0]) > 10 * LAST_LOSS * losses_CS[0, 0], "the updates are too small to tell from none"
    assert all(outcome.contender.name in table and outcome.peak_bytes > 2**20 for outcome in outcomes)


def test_every_contender_makes_the_same_steps_on_the_recipes_own_rows(tmp_path):
    outcomes, table = run_step(tmp_path)
    check_outcomes(outcomes, table)
    assert "8 rows of 64" in table and "MFU is not shown" in table and "in turn" in table


def test_every_contender_makes_the_same_steps_on_random_rows_in_bfloat16(tmp_path):
    outcomes, table = run_step(
        tmp_path, "--random", "--turns=runs", "compute.dtype=bfloat16", "train.peak_flops_per_s=1e11"
    )
    check_outcomes(outcomes, table)
    assert "8 rows of 64, random" in table and "one contender after the other" in table
    assert "peak: train.peak_flops_per_s of the recipe" in table and table.count("%") == len(outcomes)


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> tuple[Path, Step]:
    """The folder that contenders start from, and what polytune's first step from it gives."""
    start = tmp_path_factory.mktemp("first") / "start"
    recipe = load_tiny(start.parent)
    step.prepare(recipe, start, find_device("cpu"), count=1, random=True)
    worker = Worker(Contender(name="polytune", side="polytune"), recipe, start, MACHINE)
    try:
        return start, worker.step(0)
    finally:
        worker.stop()


def their_first_step(start: Path, recipe: Recipe, *, is_packed: bool = True, **options: Any) -> Step:
    return TransformersContender(recipe, start, "cpu", is_packed=is_packed, **options).step(0)


def scale_a_weight(start: Path) -> None:
    """One matrix of the second layer a twentieth larger."""
    (file,) = (start / MODEL_FOLDER).glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1.05
    save_file(tensors, file, metadata={"format": "pt"})


def join_the_examples(start: Path) -> None:
    """Positions that go on from one example to the next: then examples of a row see each other."""
    change_rows(start, "positions_BT", lambda positions: np.broadcast_to(np.arange(64), positions.shape))


def train_a_token_more(start: Path) -> None:
    """A weight at the last token of an example, whose target would be the next one's first."""
    change_rows(start, "loss_weight_BT", lambda weight: np.where(np.arange(64) == 63, 1.0, weight))


def change_rows(start: Path, name: str, change) -> None:
    with np.load(start / ROWS_FILE) as stored:
        fields = dict(stored)
    np.savez(start / ROWS_FILE, **(fields | {name: change(fields[name]).astype(fields[name].dtype)}))


@pytest.mark.parametrize("spoil", [scale_a_weight, join_the_examples, train_a_token_more])
def test_a_wrong_weight_mask_or_target_is_not_the_same_work(started, tmp_path, spoil):
    start, ours = started
    shutil.copytree(start, tmp_path / "start")
    recipe = load_tiny(tmp_path)
    check_first("theirs", their_first_step(tmp_path / "start", recipe), ours, dtype="float32")
    spoil(tmp_path / "start")
    with pytest.raises(NotTheSameWorkError, match="not the same work: theirs has loss"):
        check_first("theirs", their_first_step(tmp_path / "start", recipe), ours, dtype="float32")


@pytest.mark.parametrize(
    "form", [{"is_packed": False}, {"checkpoints_activations": True}, {"weights": "bfloat16"}], ids=str
)
def test_every_form_of_their_step_is_the_same_work(started, tmp_path, form):
    start, ours = started
    dtype = form.get("weights", "float32")
    recipe = load_tiny(tmp_path, f"compute.dtype={dtype}")
    check_first(str(form), their_first_step(start, recipe, **form), ours, dtype=dtype)


def test_rows_that_are_laid_end_to_end_for_flash_attention_have_the_same_loss(started, tmp_path):
    start, ours = started
    (batch,) = load_batches(start / ROWS_FILE)
    contender = TransformersContender(load_tiny(tmp_path), start, "cpu", is_packed=True)
    flat = flatten_inputs(batch)
    assert flat["input_ids"].shape == (1, batch.tokens_BT.size)
    losses = []
    for inputs in (pack_inputs(batch), flat):
        placed = {name: torch.from_numpy(array).long() for name, array in inputs.items()}
        losses.append(contender._call(**placed, use_cache=False).loss.item())
    np.testing.assert_allclose(losses, ours.loss, rtol=1e-4)


def test_the_benchmark_of_decoding_runs_to_its_table(capsys):
    arguments = ["--batch=1", "--prompt=8", "--new=4", "--runs=1", "--model=1M (the demo's)"]
    assert decode.main(arguments) == 0
    assert "100.0% of all tokens the same" in capsys.readouterr().out
