"""Hugging Face chat templates: Jinja compiled in a sandbox, rendered as transformers renders them."""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from data.schema import DataError, Turn

# How templates are rendered, as data: a part of every template's hash.
MANNER = {"version": 1, "trim_blocks": True, "lstrip_blocks": True, "trained": ["answer", "end of turn"]}

DICT_NAMES = frozenset(dir(dict))
"""Attributes that any table has; every other name is a field's."""


def compile_template(source: str, *, name: str, date: str) -> jinja2.Template:
    """Returns the template, ready to render. `strftime_now` in it tells of `date`, an ISO day.

    Raises DataError naming the template if it is no Jinja.
    """
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _write_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _make_clock(date),
        "dict": lambda *items, **fields: dict(*items, **fields),
        "namespace": _PublicNamespace,
    }
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise DataError(f"{name} is no Jinja template: {error.message} (line {error.lineno})") from None


def make_messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """Returns turns as templates are given them; what a turn lacks, its message lacks too.

    Raises DataError with the turn's index for calls that are not the JSON of a list of calls.
    """
    messages = []
    for index, turn in enumerate(turns):
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.thoughts:
            message["reasoning_content"] = turn.thoughts
        if turn.tool_calls:
            message["tool_calls"] = _parse_calls(turn.tool_calls, index)
        if turn.name:
            message["name"] = turn.name
        if turn.tool_call_id:
            message["tool_call_id"] = turn.tool_call_id
        messages.append(message)
    return messages


def parse_tools(tools: str) -> list[Any] | None:
    """Returns the tools of a conversation as templates are given them; None for "".

    Raises DataError if they are not the JSON of a list of objects.
    """
    if not tools:
        return None
    found = _parse_json(tools, "tools")
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise DataError(f"tools must be a JSON list of objects, not {tools[:80]!r}; mend the row")
    return found or None


def render_messages(
    template: jinja2.Template,
    messages: Sequence[Mapping[str, Any]],
    *,
    variables: Mapping[str, Any],
    add_generation_prompt: bool,
    tools: Sequence[Any] | None = None,
) -> str:
    """Returns the text of the messages. Raises DataError with the template's own words where it refuses them."""
    given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": add_generation_prompt}
    try:
        # As `template.render`, which copies all globals one by one each time.
        context = template.new_context({**template.environment.globals, **variables, **given}, shared=True)
        return "".join(template.root_render_func(context))
    except jinja2.TemplateError as error:
        raise DataError(f"the template refuses it: {error.message}") from None
    except Exception as error:
        # The template is the user's program: whatever it raises on this row is about the row.
        raise DataError(f"the template fails on it: {type(error).__name__}: {error}") from None


def _parse_calls(calls: str, index: int) -> list[dict[str, Any]]:
    found = _parse_json(calls, f"turn {index}: tool_calls")
    if not isinstance(found, list) or not found or not all(map(_is_call, found)):
        raise DataError(
            f"turn {index}: tool_calls must be a JSON list of calls, each "
            '{"type": "function", "function": {"name": text, "arguments": object}}, not '
            f"{calls[:80]!r}; mend the row"
        )
    return found


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict) or not isinstance(function := call.get("function"), dict):
        return False
    name = function.get("name")
    return isinstance(name, str) and bool(name) and isinstance(function.get("arguments"), dict)


def _parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is no JSON ({error}); mend the row: {text[:80]!r}") from None


class _Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, which finds fields of messages without a failed look-up of an attribute first."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Returns what the sandbox would."""
        if type(obj) is dict and attribute not in DICT_NAMES:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` renders what is inside, in a scope of its own."""

    tags = {"generation"}  # noqa: RUF012 (Jinja reads it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """Returns the body of the tag."""
        line = next(parser.stream).lineno
        body: Sequence[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(list(body), lineno=line)


class _PublicNamespace(Namespace):
    """Jinja's namespace, less names that start with an underscore."""

    def __init__(*arguments: Any, **fields: Any) -> None:
        self, *items = arguments
        values = dict(*items, **fields)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}; use a name without underscore")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _make_clock(date: str) -> Callable[[str], str]:
    return lambda form: datetime.datetime.fromisoformat(date).strftime(form)


def _write_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the escapes for HTML that Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
