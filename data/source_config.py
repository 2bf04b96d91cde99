"""What a recipe says about sources: where rows are, and how they become conversations."""

from typing import Annotated, Literal

import msgspec

Positive = Annotated[float, msgspec.Meta(gt=0)]
AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


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
    """Where a row's language comes from: exactly one of `field`, `constant`, `file_name` and `path`."""

    field: str | None = None
    """A field of the row holding a BCP-47, ISO 639 or FLORES code (`swh_Latn`), or a language's English name."""
    constant: str | None = None
    """One tag for every row."""
    file_name: str | None = None
    """A regular expression with one group, matched against the file's name: `xnli_(.+)\\.jsonl`."""
    path: str | None = None
    """A regular expression with one group, searched in the file's path below `data.root`: `/([a-z]{3})/`."""
    codes: dict[str, str] = {}
    """What names of the data's own mean, wherever they stand: `{kiswahili_sanifu: sw}`. They win over all codes."""

    def __post_init__(self) -> None:
        given = [value for value in (self.field, self.constant, self.file_name, self.path) if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `field`, `constant`, `file_name` and `path`; {len(given)} are given")


class LossConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which tokens of a source are trained, and how much each counts. A row's own `train` marks win."""

    turns: Literal["all", "last"] = "all"
    """Assistant turns that are trained: all of them, or the last one only."""
    prompt_weight: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    """Weight of the contents of system, user and tool turns, answers counting 1 (Instruction Modelling,
    arXiv:2405.14394); scaffolding of the template is never trained. 0: answers alone."""


class TreeFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the fields of message trees are called (`rows: tree`). The defaults are OASST1's."""

    id: str = "message_id"
    parent: str = "parent_id"
    role: str = "role"
    text: str = "text"
    rank: str = "rank"
    """Lower is better; missing ranks come last; ties keep the file's order."""
    assistant_role: str = "assistant"


Format = Literal[
    "auto", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "array_record", "tfds", "hf_dataset"
]  # fmt: skip
RowForm = Literal[
    "auto", "mapping", "messages", "conversations", "instruction", "prompt_completion", "text", "preference", "ranked",
    "tree",
]  # fmt: skip


class FileSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="files"):
    """Rows of files, read as conversations: in a form that is known, or by templates written in the recipe."""

    name: str
    path: str | tuple[str, ...]
    """Files, globs or folders, relative to `data.root`; or URLs (`gs://bucket/x_*.jsonl.gz`)."""
    format: Format = "auto"
    """`auto`: from the file's name (`.jsonl`, `.jsonl.gz`, `.parquet` ...), or from what a folder holds."""
    split: str | None = None
    """Which split of a TFDS data set or of a folder written by `datasets`; needed where there are several."""
    rows: RowForm = "auto"
    """How a row spells a conversation. `auto`: `mapping` where `messages` is given, else by the fields of the rows."""
    columns: dict[str, str] = {}
    """Fields of the form, and what the rows call them: `{messages: dialog, language: lang_code}`. Without it the names
    of peers are taken, with a notice (`data/schemas/forms.py`)."""
    messages: tuple[MessageTemplate, ...] = ()
    """The mapping, for `rows: mapping`."""
    tree: TreeFields = TreeFields()
    language: LanguageRule | None = None
    """None: each row says it, in a field `language` (or one of the names peers use)."""
    task: str = ""
    where: str | None = None
    """A Jinja expression over what templates see; rows for which it is false are left out (and counted); of
    trees, whole ones, by their roots."""
    loss: LossConfig = LossConfig()
    weight: Positive = 1.0
    """Relative weight of the source before the temperature over languages."""
    limit: AtLeastOne | None = None
    """At most this many rows, taken evenly over the file(s), never just the first ones."""


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


Source = FileSource | CldrSource | ProceduralSource
