"""What a recipe says about training: steps, optimizer, checkpoints, logging."""

from typing import Annotated, Any, Literal

import msgspec

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Beta = Annotated[float, msgspec.Meta(ge=0, lt=1)]
Memory = Literal["device", "host"]
TrackerName = Literal["tensorboard", "wandb", "trackio"]


class OptimConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The optimizer, its learning rate over the run, decay and clipping.

    An option that the chosen optimizer or schedule does not read stays None: giving one is an error. One that it reads
    and that is not given becomes its default, so that a resolved recipe holds every number in use.
    """

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    """arXiv:1711.05101; arXiv:1804.04235 without first moments; arXiv:2302.06675; kellerjordan.github.io/posts/muon,
    scaled as in arXiv:2502.16982, with AdamW for embedding, head and vectors."""
    learning_rate: Positive
    """Peak, reached after the warm-up. Lion wants 3 to 10 times less than AdamW; the others about the same."""
    warmup_steps: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Steps of linear rise from zero."""
    lr_scheduler_type: Literal["cosine", "linear", "constant", "warmup_stable_decay", "inverse_sqrt"] = "cosine"
    """Shape after the warm-up: down to `final_lr_ratio` at the last step; `warmup_stable_decay` stays at the peak until
    its last `decay_steps`; `inverse_sqrt` falls with 1 / sqrt(steps)."""
    final_lr_ratio: Fraction | None = None
    """Last learning rate over the peak. Default 0; `constant` and `inverse_sqrt` have none."""
    decay_steps: AtLeastOne | None = None
    """Of `warmup_stable_decay`: updates below the peak at the end. Default: a tenth of the run."""
    decay_type: Literal["linear", "cosine", "1-sqrt"] | None = None
    """Of `warmup_stable_decay`: how the rate falls in them. Default linear. Source: arXiv:2405.18392."""
    timescale: AtLeastOne | None = None
    """Of `inverse_sqrt`: n steps after the warm-up the peak is divided by sqrt(1 + n / timescale). Default:
    `warmup_steps`, or 10,000 without a warm-up."""
    b1: Beta | None = None
    """Decay of the first moment; for Lion its share in the update. Default 0.9; Adafactor has none."""
    b2: Beta | None = None
    """Decay of the second moment, default 0.95; of Lion's only moment, default 0.99. Adafactor has `decay_rate`."""
    eps: Positive | None = None
    """Of AdamW: added to the root of the second moment. Default 1e-8."""
    mu_dtype: Literal["float32", "bfloat16"] | None = None
    """Of first moments. Default float32; bfloat16 saves two bytes a parameter. Adafactor has none."""
    momentum: Beta | None = None
    """Of Muon: decay of the average of gradients that is orthogonalised (Nesterov's). Default 0.95."""
    ns_steps: AtLeastOne | None = None
    """Of Muon: Newton-Schulz iterations. Default 5."""
    decay_rate: Positive | None = None
    """Of Adafactor: update t averages squares with decay 1 - t ** -decay_rate. Default 0.8."""
    clipping_threshold: Annotated[float, msgspec.Meta(ge=1)] | None = None
    """Of Adafactor: largest root mean square of a matrix's update before the learning rate. Default 1."""
    min_dim_size_to_factor: AtLeastOne | None = None
    """Of Adafactor: a matrix with a side below this keeps all of its second moments. Default 128."""
    multiply_by_parameter_scale: bool | None = None
    """Of Adafactor: the learning rate is relative to each matrix's root mean square; rates are then near 0.01. Default
    false: the rates of AdamW."""
    weight_decay: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Decoupled: each update takes learning rate x this x the parameter."""
    weight_decay_params: tuple[str, ...] | None = None
    """Patterns over parameter paths (`train.paths`) that decay; None: all matrices, so no scale and no bias."""
    max_grad_norm: Positive = 1.0
    """Global norm above which a gradient is scaled down, before the optimizer sees it."""

    def __post_init__(self):
        self._fill_in("name", OPTIMIZER_OPTIONS)
        self._fill_in("lr_scheduler_type", SCHEDULE_OPTIONS)
        if self.weight_decay_params is not None and not self.weight_decay:
            raise ValueError("optim.weight_decay_params is given, but optim.weight_decay is 0; give both or neither")

    def _fill_in(self, chooser: str, table: dict[str, dict[str, Any]]) -> None:
        """Options that the choice reads get its defaults; others must not have been given."""
        choice = getattr(self, chooser)
        for field in sorted({field for options in table.values() for field in options}):
            given = getattr(self, field)
            if field not in table[choice] and given is not None:
                readers = ", ".join(name for name, options in table.items() if field in options)
                raise ValueError(
                    f"optim.{field}={given} is not read by optim.{chooser}={choice}; leave it out, or use {readers}"
                )
            if field in table[choice] and given is None:
                msgspec.structs.force_setattr(self, field, table[choice][field])

    @property
    def options(self) -> dict[str, Any]:
        """What the chosen optimizer reads, besides learning rate, decay and clipping."""
        return {field: getattr(self, field) for field in OPTIMIZER_OPTIONS[self.name]}


_ADAM = {"b1": 0.9, "b2": 0.95, "eps": 1e-8, "mu_dtype": "float32"}
OPTIMIZER_OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": _ADAM,
    "adafactor": {
        "decay_rate": 0.8,
        "clipping_threshold": 1.0,
        "min_dim_size_to_factor": 128,
        "multiply_by_parameter_scale": False,
    },
    "lion": {"b1": 0.9, "b2": 0.99, "mu_dtype": "float32"},
    "muon": {**_ADAM, "momentum": 0.95, "ns_steps": 5},
}
"""Options that each optimizer reads, and their defaults."""
SCHEDULE_OPTIONS: dict[str, dict[str, Any]] = {
    "cosine": {"final_lr_ratio": 0.0},
    "linear": {"final_lr_ratio": 0.0},
    "constant": {},
    "warmup_stable_decay": {"final_lr_ratio": 0.0, "decay_steps": None, "decay_type": "linear"},
    "inverse_sqrt": {"timescale": None},
}
"""The same of each schedule. None: known once the length of the run is."""


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
    freeze: tuple[str, ...] = ()
    """Patterns over parameter paths (`train.paths`) that stay as they are: no gradient, optimizer state or decay."""
    ema_decay: Annotated[float, msgspec.Meta(gt=0, lt=1)] | None = None
    """Also keep the average of the parameters over steps, in float32: after each update average = d x average + (1 - d)
    x parameters. It starts as the initial parameters. `polytune eval --weights ema` reads it. None: no average."""
    optimizer_memory: Memory = "device"
    """`host`: moments wait in the host's memory between updates; each step copies them to the devices and back."""
    neftune_alpha: Positive | None = None
    """Noise on the embeddings, in training only: uniform within alpha / sqrt(tokens of the example x model.dim). 5 to
    15 in its source: arXiv:2310.05914. The logged loss is that of the noisy model. None: no noise."""
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    """Share of the entries of embeddings, and of what attention and MLP add to the residual stream, that is set to 0 in
    training, the others scaled up: `embd_pdrop` and `resid_pdrop` of a config.json, which are never taken from there.
    Source: arXiv:1207.0580."""
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
    non_finite: NonFiniteConfig = NonFiniteConfig()
    """What becomes of steps whose loss or gradient is not finite."""
    spikes: SpikeConfig | None = None
    """Skip steps whose loss or gradient norm is far above the usual; None: make all of them."""
    stalled_after_s: Positive | None = 1800.0
    """A process that has been at one thing (loading a batch, a step, a save) for so many seconds has stalled, and the
    run ends with an error that names it; four times as many to compile, restore or look at held-out rows. None: wait
    for ever."""

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
