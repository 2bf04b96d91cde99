"""What a recipe says about data: tokenizer, packing, loading; sources and mixture have files of their own."""

from typing import Annotated, Literal

import msgspec

from data.cleaning_config import CleaningConfig
from data.mixture_config import MixtureConfig
from data.source_config import Source

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class TokenizerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What turns text into ids, and conversations into text."""

    path: str | None = None
    """A SentencePiece `.model` file. None: train one on the sources' texts, before any weighting."""
    vocab_size: Annotated[int, msgspec.Meta(ge=300)] = 4096
    """Pieces of a trained tokenizer, control tokens and 256 byte pieces included. Unused with `path`."""
    character_coverage: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9998
    """Share of characters that get a piece of their own; the others become bytes (never unknown)."""
    template: str | None = None
    """Chat template: one that comes with polytune (`data/templates`: chatml, llama3, plain ...) or the path of a Jinja
    file as Hugging Face has them. None: the one stored with the tokenizer at `path`, or the tokenizer's own."""


class PackingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How examples become rows of fixed length."""

    row_length: Annotated[int, msgspec.Meta(ge=8)] = 512
    """Positions in a row (T)."""
    packed: bool = True
    """False: one example a row, the rest padding."""
    overlong: Literal["drop", "truncate", "split", "error"] = "error"
    """Examples longer than a row, always counted by language. `error`: the first one stops the run; `drop`: they are
    left out; `truncate`: the turns that fit are kept, up to an assistant's; `split`: cut between turns into several
    examples, each with the system turn (plain texts: between tokens). Never inside a turn: one too long by itself is
    dropped."""
    block_examples: Annotated[int, msgspec.Meta(ge=16)] | None = None
    """Examples packed together; larger is fuller, smaller follows the mixture more finely. None: 1,024, or as many as
    fill 32 rows if that is more."""


class HeldOutConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rows that are never trained on: their loss by language is looked at every `train.held_out_every` steps."""

    sources: tuple[Source, ...]
    """As `data.sources`; a row that training has too, token for token, is left out and counted."""
    examples: AtLeastOne = 16
    """Most examples of each language, evenly spread over what its sources have."""


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides the token stream, except batch size, steps and seed."""

    sources: tuple[Source, ...]
    root: str = "."
    """Folder that relative paths of sources start from."""
    mixture: MixtureConfig = MixtureConfig()
    cleaning: CleaningConfig = CleaningConfig()
    packing: PackingConfig = PackingConfig()
    bad_rows: Literal["error", "skip"] = "error"
    """First bad row stops the run before training, or bad rows go to `plan/bad_rows.jsonl` with reasons."""
    max_dropped: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """Largest share of a source's rows that may be skipped or dropped as overlong before the run refuses."""
    changed_plan: Literal["refuse", "accept"] = "refuse"
    """What a run does when its data, mixture or seed give other rows than those it was started with. `accept`: it goes
    on at the row it has come to, of the new plan; tokenizer and template must be the same."""
    store: str | None = None
    """Folder of tokenised rows, in shards named by the hash of all they are made from; many runs may share it, and what
    is not needed any more can be deleted. On several hosts, one that all of them see. None: polytune's cache folder."""
    prepare_workers: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Processes that tokenise. None: one a core where there is enough to do; 0: this one. Never changes what comes."""
    workers: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Loader processes; 0 = threads in this one. Never changes the batches."""
    prefetch: AtLeastOne = 2
    """Batches kept ready."""
    held_out: HeldOutConfig | None = None
    """None: no loss but that of training is looked at."""
