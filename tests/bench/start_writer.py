"""Makes what every contender of the step benchmark starts from, once, on the CPU, by the tables of polytune's export.

Neither side then needs to know the other's names of parameters.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import msgspec
import numpy as np

from data.batch import Batch
from data.pipeline import make_batches
from data.prepare import prepare
from launch.config import Recipe
from launch.origin import open_origin
from launch.plan_ahead.program import resolve_config
from launch.train import make_job
from model.config import ModelConfig
from model.hf.family import constant_tensors, hub_tensors
from model.hf.registry import write_config
from model.hf.shards import FolderWriter, TensorSpec, plan_shards
from model.hf.weights import read_tensors
from model.parallel import UNSHARDED
from model.transformer import Params, init
from tests.bench.start import MODEL_FOLDER, ROWS_FILE, START_FILE, Start
from tests.bench.workload import draw_batch, save_batches
from train.job import head_positions
from train.optim import make_schedule

RANDOM_BATCHES = 4
"""Different ones; steps take them in turn."""
ENDLESS = 10**6
SHARD_BYTES = 4 * 10**9
LONGEST = 2**17
"""More than any row; a family whose rotation depends on it writes its own."""
FLOAT32 = np.dtype(np.float32)


def plan_from_data(recipe: Recipe, run_dir: Path, count: int) -> tuple[Start, list[Batch]]:
    """The recipe's own first batches. Raises SystemExit when it has fewer."""
    recipe = msgspec.structs.replace(recipe, run=msgspec.structs.replace(recipe.run, dir=str(run_dir)))
    origin = open_origin(recipe)
    prepared = prepare(
        recipe.data, origin.tokenizer, steps=recipe.train.steps, epochs=recipe.train.epochs,
        batch_rows=recipe.train.batch_rows, seed=recipe.run.seed, run_dir=run_dir, store=run_dir / "store",
        extra_stop_ids=origin.stop_ids,
    )  # fmt: skip
    job = make_job(recipe, origin, prepared)
    rows = make_batches((prepared.dataset, prepared.plan), start_row=0, batch_rows=recipe.train.batch_rows)
    batches = [batch for batch, _ in zip(rows, range(count), strict=False)]
    if len(batches) < count:
        raise SystemExit(f"{count} steps are needed, warm-up included; the recipe has {len(batches)}: lower --steps")
    start = Start(
        model=job.spec.model, languages=job.spec.num_languages, sources=job.spec.num_sources,
        most_trained=job.spec.most_trained, steps=job.steps, rates=list_rates(recipe, job.steps, count),
    )  # fmt: skip
    return start, batches


def plan_from_random_rows(recipe: Recipe, count: int) -> tuple[Start, list[Batch]]:
    """Random rows of the recipe's size. No data are read, nor, where it gives `model.vocab_size`, a tokenizer."""
    cfg, length, rows = resolve_config(recipe), recipe.data.packing.row_length, recipe.train.batch_rows
    rng = np.random.default_rng(recipe.run.seed)
    batches = [
        draw_batch(rng, rows=rows, length=length, vocabulary=cfg.vocab_size)
        for _ in range(min(count, RANDOM_BATCHES))
    ]  # fmt: skip
    trained_R = np.concatenate([(batch.loss_weight_BT > 0).sum(axis=1) for batch in batches])
    most = max(head_positions(trained_R, batch_rows=rows, row_length=length))
    steps = recipe.train.steps or ENDLESS
    rates = list_rates(recipe, steps, count)
    return Start(model=cfg, languages=2, sources=0, most_trained=most, steps=steps, rates=rates), batches


def list_rates(recipe: Recipe, steps: int, count: int) -> tuple[float, ...]:
    """The first learning rates of a run of so many steps."""
    schedule = make_schedule(recipe.optim, steps)
    with jax.numpy_dtype_promotion("standard"):
        return tuple(np.asarray([schedule(step) for step in range(count)], float).tolist())


def write_start(folder: Path, start: Start, batches: Sequence[Batch], *, seed: int) -> None:
    """Writes all of it, with random parameters. Raises FamilyError, before any are made, for a model of no family."""
    write_config(start.model)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / START_FILE).write_bytes(msgspec.json.encode(start))
    save_batches(list(batches), folder / ROWS_FILE)
    params = jax.jit(functools.partial(init, start.model, UNSHARDED))(jax.random.key(seed))
    export_params(folder / MODEL_FOLDER, start.model, params)


def export_params(folder: Path, cfg: ModelConfig, params: Params) -> None:
    """Writes float32 parameters as a Hugging Face folder without a tokenizer, by the tables of `polytune export`."""
    family, values = write_config(cfg)
    # A padding id would take the gradient from its row of the embedding.
    described = {
        "architectures": [family.architecture], "model_type": family.model_type, "torch_dtype": "float32",
        "max_position_embeddings": LONGEST, **values,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    tensors = (*hub_tensors(family, cfg), *constant_tensors(family, cfg))
    specs = [TensorSpec(each.name, each.shape, FLOAT32) for each in tensors]
    with FolderWriter(folder, plan_shards(specs, SHARD_BYTES)) as writer:
        for name, array in read_tensors(family, cfg, params, {spec.name: FLOAT32 for spec in specs}):
            writer.write(name, array)
