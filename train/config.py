"""What a recipe says about training: steps, optimizer, checkpoints, logging."""

from typing import Annotated, Literal

import msgspec

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


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
    on_error: Literal["stop", "retry"] = "stop"
    """What a save that fails (a full disk, a folder out of reach) does: `stop` the run with an error, or let it train
    on and `retry`. The last state must be saved either way, or the run ends with an error."""
    retry_every_s: Positive = 60.0
    """With `retry`: seconds from a failed save to the next try; sooner where a save is due."""
    max_failures: AtLeastOne = 20
    """With `retry`: so many failed saves one after the other end the run with an error."""


class NonFiniteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What becomes of a step whose loss or gradient is NaN or infinite. Its update is never made."""

    action: Literal["skip", "stop"] = "skip"
    """`skip`: parameters and moments stay as they are, the next step has the next rows; `stop`: the run ends."""
    max_in_a_row: AtLeastOne = 3
    """So many of them one after the other end the run: then it is not the rows."""


class SpikeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Skips a step whose loss or gradient norm is far above those before it. Source: OLMo-core, `SkipStepOptimizer`."""

    sigma: Positive = 6.0
    """Standard deviations above the mean of the window, from which a step is skipped. Source: the same."""
    window: Annotated[int, msgspec.Meta(ge=2)] = 128
    """Steps that mean and deviation are taken over, skipped spikes among them, so that a loss that stays high is taken
    for the new level after a few steps. Before there are so many no step is skipped. Source: the same."""
    max_in_a_row: AtLeastOne = 20
    """So many of them one after the other end the run."""


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
    """Steps between per-language records and lines of a log that is not a terminal."""
    tensorboard: bool = True
    non_finite: NonFiniteConfig = NonFiniteConfig()
    """What becomes of steps whose loss or gradient is not finite."""
    spikes: SpikeConfig | None = None
    """Skip steps whose loss or gradient norm is far above the usual; None: make all of them."""
    stalled_after_s: Positive | None = 1800.0
    """A process that has been at one thing (loading a batch, a step, a save) for so many seconds has stalled, and the
    run ends with an error that names it; four times as many to compile or restore. None: wait for ever."""

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give train.steps or train.epochs, one of them")
        if self.batch_rows % self.microbatches:
            raise ValueError(
                f"batch_rows={self.batch_rows} is not divisible by microbatches={self.microbatches}; "
                f"use batch_rows={-(-self.batch_rows // self.microbatches) * self.microbatches}"
            )
