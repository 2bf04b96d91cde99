"""Mappings from rows to turns: sandboxed Jinja templates written in the recipe, compiled once."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from data import languages
from data.schema import DataError, Turn
from data.schemas.turns import check_order, check_turn
from data.schemas.values import show_names
from data.source_config import FileSource, MessageTemplate

FUNCTIONS = {"language_name": languages.own_name, "english_name": languages.english_name}
"""What templates can call besides Jinja's own filters."""


class CompiledMessage(NamedTuple):
    """A `MessageTemplate` ready to render; `place` is where the recipe has it."""

    place: str
    role: str
    template: jinja2.Template | None
    each: str | None
    messages: tuple["CompiledMessage", ...]


class CompiledMapping(NamedTuple):
    """The messages and the filter of a source, ready to render; no messages where the rows' form is known."""

    messages: tuple[CompiledMessage, ...]
    where: Callable[..., Any] | None
    place: str


def compile_mapping(source: FileSource, place: str) -> CompiledMapping:
    """Returns the source's templates compiled. Raises DataError naming the recipe's key, e.g.
    `data.sources.2.messages.0.content`, for a template that is no Jinja."""
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        finalize=_refuse_non_text,
    )
    messages = tuple(
        _compile_message(environment, message, f"{place}.messages.{index}")
        for index, message in enumerate(source.messages)
    )
    if messages and not any(_answers(message) for message in messages):
        raise DataError(f"{place}.messages has no message of role assistant, so nothing would be trained; add one")
    where = None
    if source.where is not None:
        try:
            where = environment.compile_expression(source.where, undefined_to_none=False)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"{place}.where is no Jinja expression: {error.message}: {source.where!r}") from None
    return CompiledMapping(messages, where, f"{place}.where")


def make_context(row: Mapping[str, Any], *, language: str, line: int) -> dict[str, Any]:
    """Returns what templates see: the row's fields, `row` itself, its standardised `language`, its `line`
    in the file (from 1), and the functions `language_name` and `english_name`, which win over fields."""
    return {**row, "row": row, "language": language, "line": line, **FUNCTIONS}


def is_wanted(mapping: CompiledMapping, context: dict[str, Any]) -> bool:
    """Whether the row passes `where`. Raises DataError if the expression fails on it."""
    where = mapping.where
    return where is None or _guard(lambda: bool(where(context)), mapping.place, context)


def render_turns(mapping: CompiledMapping, context: dict[str, Any]) -> tuple[Turn, ...]:
    """Returns the row's turns. Content is taken as rendered: a template that wants it trimmed says `| trim`.

    A system message that renders to nothing is left out. Raises DataError if a template fails on the row, or gives
    what `check_turn` and `check_order` refuse.
    """
    return check_order([turn for message in mapping.messages for turn in _render_message(message, context)])


def _compile_message(
    environment: ImmutableSandboxedEnvironment, message: MessageTemplate, place: str
) -> CompiledMessage:
    inner = tuple(
        _compile_message(environment, each, f"{place}.messages.{index}") for index, each in enumerate(message.messages)
    )
    if message.content is None:
        return CompiledMessage(place, "", None, message.each, inner)
    try:
        template = environment.from_string(message.content)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(
            f"{place}.content is no template: {error.message} (line {error.lineno}): {message.content!r}"
        ) from None
    return CompiledMessage(f"{place}.content", message.role or "", template, None, ())


def _answers(message: CompiledMessage) -> bool:
    return message.role == "assistant" or any(_answers(inner) for inner in message.messages)


def _render_message(message: CompiledMessage, context: dict[str, Any]) -> Iterator[Turn]:
    template = message.template
    if template is not None:
        content = _guard(lambda: template.render(context), message.place, context)
        if message.role != "system" or content.strip():
            yield check_turn(Turn(message.role, content), message.place)
        return
    items = context["row"].get(message.each)
    if not isinstance(items, list):
        what = f"is {type(items).__name__}, not a list" if message.each in context["row"] else "is missing"
        raise DataError(f"field {message.each!r} {what} ({message.place}.each)")
    for item in items:
        for inner in message.messages:
            yield from _render_message(inner, {**context, "item": item})


def _guard(render: Callable[[], Any], place: str, context: dict[str, Any]) -> Any:
    """What `render` returns; whatever the recipe's expression raises on this row becomes a DataError."""
    try:
        return render()
    except jinja2.UndefinedError as error:
        raise DataError(f"{place}: {error.message}; the row's fields are {show_names(context['row'])}") from None
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    except Exception as error:
        raise DataError(f"{place}: {type(error).__name__}: {error}") from None


def _refuse_non_text(value: Any) -> Any:
    """Jinja would print these as Python does (`None`, `nan`, `['a']`), and a model would learn to say so."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        shown = "null" if value is None else value
        raise DataError(f"a value is {shown}, not text; use `or ''`, or leave the row out with `where`")
    if isinstance(value, list | dict | tuple):
        kind = type(value).__name__
        raise DataError(f"a value is a {kind}, not text; name an item, or use `| join` or `| tojson`")
    return value
