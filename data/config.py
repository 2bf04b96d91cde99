"""What a recipe says about data: tokenizer, sources, mixture, packing and loading."""

from typing import Annotated, Literal

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]
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


class MessageTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One message of a mapping, or a list of messages repeated over a list field of the row."""

    role: Literal["system", "user", "assistant", "tool"] | None = None
    content: str | None = None
    """A sandboxed Jinja template over the row's fields. It also sees `row` (all fields), `language` (the row's
    standardised tag), `line` (in the file, from 1), `language_name(tag)` (in the language itself) and
    `english_name(tag)`. A system message that renders to nothing is left out."""
    each: str | None = None
    """Name of a list field: `messages` below is rendered once per item, bound to `item`."""
    messages: tuple["MessageTemplate", ...] = ()

    def __post_init__(self) -> None:
        one = self.role is not None and self.content is not None and self.each is None and not self.messages
        many = self.role is None and self.content is None and self.each is not None and bool(self.messages)
        if not one and not many:
            raise ValueError("a message has either `role` and `content`, or `each` and `messages`")


class LanguageRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a row's language comes from: exactly one of the three."""

    field: str | None = None
    """A field of the row holding a BCP-47, ISO 639 or FLORES code (`swh_Latn`)."""
    constant: str | None = None
    """One tag for every row."""
    file_name: str | None = None
    """A regular expression with one group, matched against the file's name: `xnli_(.+)\\.jsonl`."""

    def __post_init__(self) -> None:
        given = [value for value in (self.field, self.constant, self.file_name) if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `field`, `constant` and `file_name`; {len(given)} are given")


class JsonlSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="jsonl"):
    """Rows of JSON Lines files, mapped to conversations by templates written in the recipe."""

    name: str
    path: str
    """A file or glob, relative to `data.root`."""
    messages: tuple[MessageTemplate, ...]
    language: LanguageRule
    task: str = ""
    where: str | None = None
    """A Jinja expression over what templates see; rows for which it is false are left out (and counted)."""
    weight: Positive = 1.0
    """Relative weight of the source before the temperature over languages."""
    limit: AtLeastOne | None = None
    """At most this many rows, taken evenly over the file(s), never just the first ones."""


class TreeSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="tree"):
    """JSON Lines of messages that point at their parents (OASST1): the best-ranked path of each tree."""

    name: str
    path: str
    language: LanguageRule
    id_field: str = "message_id"
    parent_field: str = "parent_id"
    role_field: str = "role"
    text_field: str = "text"
    rank_field: str = "rank"
    """Lower is better; missing ranks come last; ties keep the file's order."""
    assistant_role: str = "assistant"
    task: str = "chat"
    weight: Positive = 1.0


class CldrSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="cldr"):
    """Facts from Unicode CLDR asked in the language itself. Nothing is downloaded: the `babel` package has them."""

    name: str = "cldr"
    languages: tuple[str, ...] = ()
    """Empty: every language of the shipped phrase book."""
    tasks: tuple[str, ...] = ()
    """Empty: every task of the phrase book."""
    split: Literal["train", "heldout"] = "train"
    """`train`: training phrasings; `heldout`: the same facts, asked in phrasings never trained on."""
    facts: AtLeastOne = 12
    """At most this many facts per language and task, chosen by the seed."""
    seed: int = 0
    weight: Positive = 1.0


class ProceduralSource(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="procedural"
):
    """Tasks with an oracle: rewrite the leftmost match of a rule, copy, reverse, sort. Source: arXiv:2402.10891."""

    name: str = "procedural"
    tasks: tuple[Literal["rewrite", "copy", "reverse", "sort"], ...] = ("rewrite", "copy", "reverse", "sort")
    languages: tuple[str, ...] = ()
    """Instruction languages; empty: every language of the shipped phrase book."""
    split: Literal["train", "heldout"] = "train"
    """`heldout`: rules and strings never seen in training."""
    examples: AtLeastOne = 2000
    rules: AtLeastOne = 1000
    """Distinct rewrite rules; the phase change of the source paper lies between 300 and 1,000."""
    max_letters: Annotated[int, msgspec.Meta(ge=4, le=32)] = 8
    """Strings have 4 to this many letters."""
    max_side: Annotated[int, msgspec.Meta(ge=1, le=3)] = 3
    """Each side of a rule has 1 to this many letters."""
    no_op_share: Annotated[float, msgspec.Meta(ge=0, le=0.9)] = 0.2
    """Share of rewrite examples whose string does not hold the rule's left side."""
    seed: int = 0
    weight: Positive = 1.0


Source = JsonlSource | TreeSource | CldrSource | ProceduralSource


class MixtureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often each language and source is seen."""

    temperature: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    """Language share is proportional to (its weighted amount) ** (1 / temperature); 1 = proportional, 100 = uniform.
    Source: arXiv:1910.10683 section 3.5.2 (T5) and methods of mT5, whose alpha is 1 / temperature."""
    unit: Literal["examples", "tokens", "target_tokens"] = "examples"
    """What amounts and shares count."""
    language_weights: dict[str, float] = {}
    """Explicit multipliers on languages' shares, after the temperature; 0 removes a language on purpose."""


class PackingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How examples become rows of fixed length."""

    row_length: Annotated[int, msgspec.Meta(ge=8)] = 512
    """Positions in a row (T)."""
    packed: bool = True
    """False: one example a row, the rest padding."""
    overlong: Literal["drop", "error"] = "error"
    """Examples longer than a row: the first one stops the run, or they are dropped and counted by language. Nothing is
    ever cut."""
    block_examples: Annotated[int, msgspec.Meta(ge=16)] = 4096
    """Examples packed together; larger is fuller, smaller follows the mixture more finely."""


class DataConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that decides the token stream, except batch size, steps and seed."""

    sources: tuple[Source, ...]
    root: str = "."
    """Folder that relative paths of sources start from."""
    mixture: MixtureConfig = MixtureConfig()
    packing: PackingConfig = PackingConfig()
    bad_rows: Literal["error", "skip"] = "error"
    """First bad row stops the run before training, or bad rows go to `plan/bad_rows.jsonl` with reasons."""
    max_dropped: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.1
    """Largest share of a source's rows that may be skipped or dropped as overlong before the run refuses."""
    workers: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Loader processes; 0 = threads in this one. Never changes the batches."""
    prefetch: AtLeastOne = 2
    """Batches kept ready."""
