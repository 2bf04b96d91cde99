"""What a recipe says about the mixture: how often each language and source is seen, and when."""

from typing import Annotated, Literal

import msgspec

Unit = Literal["examples", "tokens", "target_tokens", "bytes", "characters"]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
AtLeastZero = Annotated[float, msgspec.Meta(ge=0)]
Temperature = Annotated[float, msgspec.Meta(ge=1)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class UniMaxConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal budgets, but nobody is seen more than so many times. Source: arXiv:2304.09151, algorithm 1.

    Sizes count in `mixture.unit`; the paper's unit is characters.
    """

    max_epochs: Positive = 4.0
    """Most often that anything is seen (the paper's N, 1 to 10 there)."""
    budget: Positive | None = None
    """What is dealt out (the paper's C), in `mixture.unit`. None: as much as the rows of the plan (of the stage) hold;
    then the number of steps decides the shares, and a run cannot be made longer without becoming another one. What
    `max_epochs` leaves of the budget is reported, and filled by more epochs in the same shares."""


class SharesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a whole is divided among languages, or among sources. What is not said is proportional to amounts.

    In this order: amounts, `cap`, `temperature` (or `unimax` or `gains`), `weights`; then `shares`, `floor`, `ceiling`.
    """

    cap: Positive | None = None
    """Amounts above count as this much, in `mixture.unit`. Source: arXiv:1910.10683 section 3.5.2, K."""
    temperature: Temperature = 1.0
    """Shares are proportional to amount ** (1 / temperature); 1 = proportional, 100 = nearly uniform."""
    alpha: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """The exponent itself, instead of `temperature`; mT5: 0.3. Source: arXiv:2010.11934."""
    unimax: UniMaxConfig | None = None
    """Instead of `cap` and `temperature`."""
    gains: dict[str, AtLeastZero] = {}
    """Instead of amounts: a gain for each name; shares are proportional to 1 + g + g**2 / 2. Source: SMART,
    arXiv:2403.08370, whose gains come from a greedy choice of representative tasks."""
    weights: dict[str, AtLeastZero] = {}
    """Multipliers on shares, after the temperature; 0 removes a name on purpose."""
    shares: dict[str, Share] = {}
    """Exact shares, in [0, 1]; what they leave is for the other names. Inside a language that lacks some of the sources
    (or the other way round) they are scaled up where nobody else could take the rest."""
    floor: Share | dict[str, Share] = 0.0
    """Least share, for every name or by name."""
    ceiling: Share | dict[str, Share] = 1.0
    """Largest share, for every name or by name."""

    def __post_init__(self) -> None:
        tempered = self.cap is not None or self.temperature != 1 or self.alpha is not None
        both = sorted(set(self.weights) & set(self.shares))
        if both:
            raise ValueError(f"{', '.join(both)}: give a weight or a share, not both; a share is exact")
        if self.alpha is not None and self.temperature != 1:
            raise ValueError("give `alpha` or `temperature`, not both: alpha is 1 / temperature")
        if self.unimax is not None and tempered:
            raise ValueError("`unimax` decides the shares by itself: give no `cap`, `temperature` or `alpha` with it")
        if self.gains and (tempered or self.unimax is not None):
            raise ValueError(
                "`gains` decide the shares by themselves: give no `cap`, `temperature`, `alpha` or `unimax`"
            )


class PinchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Exactly so many examples of some languages in the whole run, whatever the other shares are.

    Spread evenly over the rows; an example comes again only when all of its language were there. Source: a pinch of
    multilinguality, arXiv:2401.01854. The number of steps then decides where they fall, and is part of the plan's hash.
    """

    languages: tuple[str, ...]
    examples: AtLeastOne
    """How many: of each language, or of all together with `each: false`."""
    each: bool = True
    """False: `examples` is dealt out evenly over the languages, with at most one more for some of them."""


class StageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the run with other shares. What is left out is as the mixture says; rows change at the step exactly."""

    steps: AtLeastOne | None = None
    """How many steps it lasts. Only the last stage may have neither this nor `share`: it lasts to the end."""
    share: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    """Instead: which share of the run's steps; the number of steps is then part of the plan's hash."""
    temperature: Temperature | None = None
    language_weights: dict[str, AtLeastZero] | None = None
    source_weights: dict[str, AtLeastZero] | None = None
    """Instead of the sources' own `weight`, by name; sources not named keep theirs, 0 leaves a source out."""
    languages: SharesConfig | None = None
    sources: SharesConfig | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.share is not None:
            raise ValueError("a stage lasts `steps` or a `share` of the run, not both")


class MixtureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often each language and source is seen."""

    unit: Unit = "examples"
    """What amounts and shares count, for every share below."""
    first: Literal["languages", "sources"] = "languages"
    """What is divided first. `languages`: shares of languages, and inside each language its sources; `sources`: shares
    of sources, and inside each source its languages. A source's `weight` multiplies its amounts before anything."""
    languages: SharesConfig = SharesConfig()
    sources: SharesConfig = SharesConfig()
    temperature: Temperature = 1.0
    """Short for `languages.temperature`. Source: arXiv:1910.10683 section 3.5.2 (T5), and mT5, whose alpha is
    1 / temperature."""
    language_weights: dict[str, float] = {}
    """Short for `languages.weights`."""
    max_epochs: Positive | dict[str, Positive] | None = None
    """Most often that an example of a source is seen, for every source or by name; see `exhausted`. None: once, where
    `exhausted` is not `repeat`; sources not named have no limit."""
    exhausted: Literal["repeat", "leave", "stop", "error"] = "repeat"
    """When a source has no example of some language left. `repeat`: it starts again, for ever; `leave`: the other
    sources of that language take its share, then the other languages (with `first: sources` the other way round);
    `stop`: the plan ends with the last whole batch, and says how many steps it has; `error`: the run is refused, and
    told how many steps there are."""
    pinch: tuple[PinchConfig, ...] = ()
    """Languages outside the shares: a counted number of examples in the whole run."""
    stages: tuple[StageConfig, ...] = ()
    """Curriculum: parts of the run, one after the other. Empty: one, as said above."""

    def __post_init__(self) -> None:
        rule = self.languages
        if self.temperature != 1 and (rule.temperature != 1 or rule.alpha is not None or rule.unimax or rule.gains):
            raise ValueError("`temperature` is short for `languages.temperature`: give one of the two")
        if self.language_weights and rule.weights:
            raise ValueError("`language_weights` is short for `languages.weights`: give one of the two")
        if self.max_epochs is not None and self.exhausted == "repeat":
            raise ValueError(
                "`max_epochs` says when a source is used up; say what then: `exhausted: leave`, `stop` or `error`"
            )
        if self.pinch and self.exhausted == "stop":
            raise ValueError("`pinch` counts over the whole run, so the run may not end early: use `exhausted: leave`")
        for stage in self.stages[:-1]:
            if stage.steps is None and stage.share is None:
                raise ValueError("only the last stage may last to the end; give the others `steps` or `share`")


def language_rule(config: MixtureConfig) -> SharesConfig:
    """`config.languages` with the short forms written into it."""
    short = {}
    if config.temperature != 1:
        short["temperature"] = config.temperature
    if config.language_weights:
        short["weights"] = config.language_weights
    return msgspec.structs.replace(config.languages, **short)


def stage_mixture(config: MixtureConfig, stage: StageConfig) -> MixtureConfig:
    """The mixture as one stage has it. A stage's `languages` replaces the short forms too, and they replace its own."""
    changed = {}
    if stage.languages is not None:
        changed |= {"languages": stage.languages, "temperature": 1.0, "language_weights": {}}
    if stage.sources is not None:
        changed["sources"] = stage.sources
    if stage.temperature is not None:
        changed["temperature"] = stage.temperature
        rule = changed.get("languages", config.languages)
        changed["languages"] = msgspec.structs.replace(
            rule, temperature=1.0, alpha=None, unimax=None, gains={}
        )  # fmt: skip
    if stage.language_weights is not None:
        changed["language_weights"] = stage.language_weights
        rule = changed.get("languages", config.languages)
        changed["languages"] = msgspec.structs.replace(rule, weights={})
    return msgspec.structs.replace(config, **changed, stages=())
