"""Tasks: declarative files that say which documents are asked about, how, and what counts as right.

A document is a conversation whose last turn is the reference and whose other turns are the prompt, so prompts
are worded by the same mappings that training uses.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from data.bad_rows import BadRows
from data.schema import Conversation, DataError
from data.source_config import CldrSource, FileSource, ProceduralSource, Source
from data.source_rows import find_source_files
from data.sources import load_source
from eval.config import EvalError

AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]
Sources = Annotated[tuple[Source, ...], msgspec.Meta(min_length=1)]


class GenerateTask(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="generate"
):
    """The model answers greedily until its end of turn; the answer is compared with the reference."""

    name: str
    version: int
    """Raised whenever a change moves scores."""
    sources: Sources
    follow_recipe: bool = False
    """Embedded sources take languages, facts, rules and seed from the checkpoint's recipe, so that what is
    asked is what was taught (in held-out form)."""
    max_new_tokens: AtLeastOne
    match: Literal["exact", "number"] = "exact"
    """`exact`: equal after `filters`; `number`: the last number of the answer equals the reference's."""
    filters: tuple[Literal["strip", "nfc"], ...] = ("strip",)
    """Applied in order to answer and reference: outer white space off; Unicode canonical composition."""
    baselines: tuple[Literal["majority", "ignore_rule"], ...] = ("majority",)
    """`majority`: the language's most frequent reference; `ignore_rule`: the prompt's string, unchanged."""


class ChoiceTask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="choice"):
    """The likeliest of some options as the assistant's answer; the reference is one of them."""

    name: str
    version: int
    sources: Sources
    follow_recipe: bool = False
    options: Annotated[tuple[str, ...], msgspec.Meta(min_length=2)]
    """Strings, or (for JSON Lines) templates over the row like those of messages."""


class HeldoutTask(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="heldout"
):
    """Loss and bits per byte of the assistant's turns."""

    name: str
    version: int
    sources: Sources
    follow_recipe: bool = False


TaskConfig = GenerateTask | ChoiceTask | HeldoutTask


class Document(NamedTuple):
    """One item of a task."""

    conversation: Conversation
    options: tuple[str, ...] = ()
    label: int = -1
    """Index of the reference among the options; -1 without options."""

    @property
    def target(self) -> str:
        """The reference answer."""
        return self.conversation.turns[-1].content


def list_tasks() -> list[str]:
    """Names of the shipped tasks."""
    return sorted(entry.name[:-5] for entry in files("eval.tasks").iterdir() if entry.name.endswith(".yaml"))


def load_task(name_or_path: str) -> TaskConfig:
    """The shipped task of this name, or the task in this .yaml file.

    Raises EvalError for an unknown name, giving the nearest, and for a file that is no task, saying where.
    """
    if name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path)
        if not path.is_file():
            raise EvalError(f"task file {path} does not exist; give its path, or one of {', '.join(list_tasks())}")
        return decode_task(path.read_text(encoding="utf-8"), origin=str(path))
    if name_or_path not in list_tasks():
        near = difflib.get_close_matches(name_or_path, list_tasks(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ";"
        raise EvalError(
            f"no task is called {name_or_path!r}{hint} There are {', '.join(list_tasks())}, "
            "or give the path of a task file ending in .yaml"
        )
    text = files("eval.tasks").joinpath(f"{name_or_path}.yaml").read_text(encoding="utf-8")
    return decode_task(text, origin=f"shipped task {name_or_path}")


def decode_task(text: str, *, origin: str) -> TaskConfig:
    """The task of this YAML text. Raises EvalError naming `origin`, the place and what was expected."""
    try:
        raw = YAML(typ="safe", pure=True).load(text)
        return msgspec.convert(raw, TaskConfig)
    except YAMLError as error:
        raise EvalError(f"{origin} is not YAML: {error}") from error
    except msgspec.ValidationError as error:
        raise EvalError(f"{origin} is not a task: {error}{_nearest_field(str(error))}") from error


def follow_recipe(task: TaskConfig, recipe: Mapping[str, Any]) -> TaskConfig:
    """The task with its sources filled in from the checkpoint's recipe, if it is one that follows it.

    Embedded sources of a kind that the recipe does not have are left out. Raises EvalError if none is left, or where
    they are of another version of polytune.
    """
    if not task.follow_recipe:
        return task
    try:
        trained = [msgspec.convert(raw, Source) for raw in recipe["data"]["sources"]]
    except msgspec.ValidationError as error:
        raise EvalError(
            f"task {task.name} follows the run's data.sources, which another version of polytune wrote ({error}); "
            "evaluate with that version, or leave the task out"
        ) from None
    followed = (_follow(source, trained) for source in task.sources)
    sources = tuple(source for source in followed if source is not None)
    if not sources:
        kinds = " or ".join(sorted({str(source.__struct_config__.tag) for source in task.sources}))
        raise EvalError(
            f"task {task.name} asks what a {kinds} source of the recipe teaches, and this run was not trained on such "
            f"data; leave the task out, or add a source of kind {kinds} to the recipe and train again"
        )
    return msgspec.structs.replace(task, sources=sources)


def load_documents(task: TaskConfig, *, data_root: Path) -> list[Document]:
    """The task's documents, in the order of its files.

    Raises EvalError or DataError for files that are missing, rows that are bad, a reference that is none of
    its options, and a source that gives nothing.
    """
    documents: list[Document] = []
    for source in task.sources:
        if isinstance(source, FileSource):
            _check_files(task.name, source, data_root)
        options = task.options if isinstance(task, ChoiceTask) else ()
        documents += _load_documents(source, options, data_root)
    return documents


def thin_out(documents: Sequence[Document], limit: int | None) -> list[Document]:
    """At most `limit` documents of each language, evenly spaced: of 10, limit 4 keeps 0, 3, 5 and 8."""
    if limit is None:
        return list(documents)
    totals = Counter(document.conversation.language for document in documents)
    seen: Counter[str] = Counter()
    kept = []
    for document in documents:
        language = document.conversation.language
        total, rank = totals[language], seen[language]
        seen[language] += 1
        if total <= limit or (rank * limit) % total < limit:
            kept.append(document)
    return kept


def _check_files(task: str, source: FileSource, data_root: Path) -> None:
    try:
        find_source_files(source, data_root)
    except DataError as error:
        paths = source.path if isinstance(source.path, str) else ", ".join(source.path)
        raise EvalError(
            f"task {task} reads {paths}, which is not under data_root {data_root}; "
            f"set data_root to the folder that holds it"
        ) from error


def _load_documents(source: Source, options: Sequence[str], root: Path) -> list[Document]:
    conversations = _load(source, root)
    if not options:
        return [Document(conversation) for conversation in conversations]
    if isinstance(source, FileSource):
        rendered = [[c.turns[-1].content for c in _load(_with_answer(source, option), root)] for option in options]
    else:
        rendered = [[option] * len(conversations) for option in options]
    return [
        Document(conversation, choices, _find_label(conversation, choices))
        for conversation, choices in zip(conversations, zip(*rendered, strict=True), strict=True)
    ]


def _load(source: Source, root: Path) -> list[Conversation]:
    return load_source(source, root=root, bad_rows=BadRows("error"))


def _with_answer(source: FileSource, template: str) -> FileSource:
    """The source with another template for its last message: how an option is rendered from a row."""
    if not source.messages:
        raise EvalError(f"source {source.name}: a choice task words its options by `messages`; write them")
    last = source.messages[-1]
    if last.role != "assistant" or last.each is not None:
        raise EvalError(f"source {source.name}: the last message of a choice task must be the assistant's")
    messages = (*source.messages[:-1], msgspec.structs.replace(last, content=template))
    return msgspec.structs.replace(source, messages=messages)


def _find_label(conversation: Conversation, options: tuple[str, ...]) -> int:
    target = conversation.turns[-1].content
    if len(set(options)) < len(options) or target not in options:
        raise DataError(
            f"{conversation.source} {conversation.id}: the options {list(options)} should differ and one "
            f"of them should be the reference {target!r}; mend the row, or leave it out with `where`"
        )
    return options.index(target)


def _follow(source: Source, trained: Sequence[Source]) -> Source | None:
    """An embedded source with the choices of the recipe's source of its kind, in its own split and tasks.

    Of several, the first with a task in common is followed, else the first. None without any; sources of files
    are returned as they are.
    """
    shared = {
        CldrSource: ("languages", "facts", "seed"),
        ProceduralSource: ("languages", "rules", "max_letters", "max_side", "no_op_share", "seed"),
    }
    if not isinstance(source, CldrSource | ProceduralSource):
        return source
    same_kind = [each for each in trained if isinstance(each, type(source))]
    if not same_kind:
        return None
    other = next((each for each in same_kind if _shares_task(source, each)), same_kind[0])
    changes = {field: getattr(other, field) for field in shared[type(source)]}
    if isinstance(source, CldrSource) and not source.tasks:
        changes["tasks"] = other.tasks
    return msgspec.structs.replace(source, **changes)


def _shares_task(one: CldrSource | ProceduralSource, other: CldrSource | ProceduralSource) -> bool:
    """Whether the sources have a task in common; no tasks means all of them."""
    return not one.tasks or not other.tasks or not set(one.tasks).isdisjoint(other.tasks)


def _nearest_field(message: str) -> str:
    """`; did you mean ...?` when the message speaks of an unknown field."""
    unknown = message.partition("unknown field `")[2].partition("`")[0]
    known = {field for kind in (*TaskConfig.__args__, *Source.__args__) for field in kind.__struct_fields__}
    near = difflib.get_close_matches(unknown, sorted(known), n=1) if unknown else []
    return f"; did you mean `{near[0]}`?" if near else ""
