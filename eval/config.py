"""What one evaluation is: a checkpoint, tasks, a mesh of its own, and limits."""

from typing import Annotated

import msgspec

from model.checkpoint import Weights
from model.config import ComputeConfig
from model.parallel import MeshConfig

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class EvalError(ValueError):
    """An evaluation that cannot be what was asked for. The message says what was given and what to do."""


class EvalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides what an evaluation reads, computes and writes."""

    checkpoint: str
    """A run directory (its newest complete step), `RUN/checkpoints/STEP`, or a Hugging Face folder."""
    tasks: tuple[str, ...]
    """Names of shipped tasks, or paths of task files ending in .yaml."""
    output: str | None = None
    """Folder for results.json and samples_TASK.jsonl. None: `RUN/eval/STEP`, with `-ema` for those weights;
    `FOLDER/eval/0` for a Hugging Face folder."""
    weights: Weights = "params"
    """Of a run: its last parameters, or their average (`train.ema_decay`)."""
    template: str | None = None
    """Chat template instead of the one that came with the model: a shipped name or a file."""
    data_root: str = "."
    """Folder that relative paths of the tasks' files start from."""
    limit: AtLeastOne | None = None
    """At most this many documents per language and task, spread evenly over them. None: all."""
    batch_tokens: Annotated[int, msgspec.Meta(ge=16)] = 16384
    """Positions computed at once, padding included; a row longer than this still goes alone."""
    max_length: Annotated[int, msgspec.Meta(ge=8)] | None = None
    """Longest input in tokens; longer prompts lose their left part and are counted. None: the row length the
    checkpoint was trained with; of a model that was not trained here what it can read, at most 4096. Generated tokens
    come on top of it."""
    mesh: MeshConfig = MeshConfig()
    compute: ComputeConfig = ComputeConfig(attention="any")
    """Any attention kernel: every model can be evaluated everywhere."""

    def __post_init__(self):
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one, e.g. --tasks facts")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError(f"tasks {','.join(self.tasks)} names a task twice; name each once")
