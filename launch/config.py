"""A recipe: the whole of a run in one frozen value, and the error every bad one ends in."""

from typing import Annotated

import msgspec

from data.config import DataConfig, TokenizerConfig
from model.config import ComputeConfig, ModelConfig
from model.parallel import AxisRules, MeshConfig
from train.config import CheckpointConfig, OptimConfig, TrainConfig


class RecipeError(ValueError):
    """A recipe or override that cannot be run. The message names the path, the value and what was expected."""


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a run lives and what it starts from."""

    dir: str
    """Run directory. The same command on the same directory goes on from its newest checkpoint."""
    seed: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Of parameters, mixture order and packing order."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run, completely. Written beside it, with every default filled in, as `recipe.yaml`."""

    run: RunConfig
    model: ModelConfig | str
    """The fields of a model, which starts from random parameters; or the path of one to start from: a Hugging Face
    folder, a run directory, RUN/checkpoints/STEP. Its tokenizer and chat template are used unless `tokenizer` says
    otherwise."""
    data: DataConfig
    optim: OptimConfig
    train: TrainConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig = MeshConfig()
    axes: AxisRules = AxisRules()
    """Which mesh axes shard which dimensions; the defaults are what the presets mean."""
    checkpoint: CheckpointConfig = CheckpointConfig()


FREE_TO_CHANGE = (
    "run.dir", "compute", "mesh", "axes", "checkpoint", "data.workers", "data.prefetch", "data.root", "data.store",
    "data.prepare_workers", "data.changed_plan", "data.held_out", "train.log_every", "train.trackers",
    "train.tracker_project", "train.gradient_share", "train.held_out_every", "train.profile",
    "train.peak_flops_per_s", "train.microbatches", "train.loss.head", "train.loss.chunk", "train.optimizer_memory",
    "train.non_finite", "train.stalled_after_s",
)  # fmt: skip
"""Keys that may differ when a run is resumed: they change speed, place or logging, never batches or what is learned."""
FREE_WITH_A_CHANGED_PLAN = ("data", "run.seed")
"""Keys that may differ besides, with `data.changed_plan: accept`: they decide the batches to come."""
