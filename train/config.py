"""What a recipe says about training: steps, optimizer, checkpoints, logging."""

from typing import Annotated, Literal

import msgspec

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


class OptimConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW with warm-up and decay. Source: arXiv:1711.05101."""

    learning_rate: Positive
    """Peak, reached after the warm-up."""
    warmup_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Steps of linear rise from zero."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up, down to `final_lr_ratio` at the last step."""
    final_lr_ratio: Fraction = 0.0
    """Last learning rate over the peak; unused by `constant`."""
    b1: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.9
    b2: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.95
    eps: Positive = 1e-8
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Decoupled; on matrices only, never on norms' scales."""
    max_grad_norm: Positive = 1.0
    """Global norm above which a gradient is scaled down."""


class RouterLossConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much the losses of a mixture's router count beside the loss of the tokens. 0: they are only measured."""

    load_balance_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of `train.loss.load_balance_loss`; 0.001 to 0.02 in released models. Source: arXiv:2101.03961, eq. 4 to 6. With
    several microbatches each step first counts the choices of all of them: one forward pass more."""
    z_loss_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of `train.loss.router_z_loss`, against growing logits; 0.001 in its source: arXiv:2202.08906, eq. 5."""


class LossConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the loss of the tokens is computed, and what is minimised beside their cross-entropy.

    `head` and `chunk` change memory and speed, never a result. The logged loss is always the bare cross-entropy.
    """

    head: Literal["chunked", "full"] = "chunked"
    """`chunked`: never more than a chunk of logits, and only those of trained positions (`train.chunked_loss`);
    `full`: the logits of all of a microbatch's K positions a row at once."""
    chunk: AtLeastOne | None = None
    """Most positions a device has logits of at a time; None: what suits the platform and the width of the vocabulary
    (`train.chunked_loss.chunk_positions`; the plan prints it)."""
    z_loss_weight: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Of the squared log of each token's softmax denominator, against drifting logits; 1e-4 in its source:
    arXiv:2204.02311, section 5."""
    label_smoothing: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share of each target's probability that is spread evenly over the vocabulary; 0.1 in its source:
    arXiv:1512.00567, section 7."""

    @property
    def is_bare(self) -> bool:
        """Whether nothing but the cross-entropy is minimised."""
        return self.z_loss_weight == 0 and self.label_smoothing == 0


class CheckpointConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to save and what to keep. Saving is asynchronous; a run's last state is always saved."""

    save_every: AtLeastOne = 100
    """Steps between saves."""
    keep_last: AtLeastOne = 2
    """Newest checkpoints kept."""
    keep_every: AtLeastOne | None = None
    """Also keep every step divisible by this."""
    keep_initial: bool = True
    """Save and keep step 0: the untrained model, which evaluation compares with."""


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size and length of the run."""

    steps: AtLeastOne | None = None
    """Optimizer steps; give this or `epochs`."""
    epochs: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Passes over every example, each exactly once a pass; the last batch is filled up with empty rows."""
    batch_rows: AtLeastOne
    """Rows of the global batch, over all devices and microbatches."""
    microbatches: AtLeastOne = 1
    """Parts the batch is split into, one after the other; the loss and update do not depend on it."""
    loss: LossConfig = LossConfig()
    """Of the tokens."""
    router: RouterLossConfig = RouterLossConfig()
    """Of models with experts."""
    log_every: AtLeastOne = 10
    """Steps between records by language and source, records of memory, and lines of a log that is not a terminal."""
    trackers: tuple[TrackerName, ...] = ("tensorboard",)
    """Where scalars go besides `metrics.jsonl`. Those but tensorboard are extras: `pip install 'polytune[wandb]'`."""
    tracker_project: str = "polytune"
    """Project that wandb and trackio file the run under."""
    gradient_share: bool = True
    """Sums by language and source how strongly tokens pull at the model (`train.loss.GroupSums`). Nearly free with the
    chunked head; the full head makes its gradient twice for it."""
    held_out_every: AtLeastOne = 200
    """Steps between looks at `data.held_out`, besides those at the first and the last state. Unused without it."""
    profile: tuple[AtLeastOne, AtLeastOne] | None = None
    """First and last step that is traced into RUN/profile, for xprof. A step with a new program includes compiling."""
    peak_flops_per_s: Positive | None = None
    """Of one device, the denominator of MFU. None: the published one, where there is one (`model.chips`)."""

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give train.steps or train.epochs, one of them")
        if self.batch_rows % self.microbatches:
            raise ValueError(
                f"batch_rows={self.batch_rows} is not divisible by microbatches={self.microbatches}; "
                f"use batch_rows={-(-self.batch_rows // self.microbatches) * self.microbatches}"
            )
        if len(set(self.trackers)) != len(self.trackers):
            raise ValueError(f"train.trackers names one twice: {', '.join(self.trackers)}; leave one of them out")
        if self.profile is not None:
            _check_profile(*self.profile, steps=self.steps)


def _check_profile(start: int, stop: int, *, steps: int | None) -> None:
    """Raises ValueError for a span of steps that would trace nothing."""
    if stop < start:
        raise ValueError(f"train.profile ends at step {stop}, before it starts at {start}; give [first, last] step")
    if steps is not None and start > steps:
        raise ValueError(
            f"train.profile starts at step {start}, but train.steps={steps}: nothing would be traced; use a step up to "
            f"{steps}"
        )
