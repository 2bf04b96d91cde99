"""Which form the rows of a source have, and which of their fields are read as what."""

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from data.formats.rows import Row
from data.schema import DataError
from data.schemas.forms import CHOSEN, FORMS, LANGUAGE_FIELDS, LOST_CONTEXT, REJECTED, Field, Form, tree_form
from data.schemas.messages import CONTENT_KEYS, ROLE_KEYS
from data.schemas.values import is_empty, show_names, take_list
from data.source_config import FileSource

MESSAGE_KEYS = {"role": ROLE_KEYS, "content": CONTENT_KEYS}
"""Fields of messages rather than of rows, and their names."""
NOT_OF_ROWS = (*MESSAGE_KEYS, "language")
"""Keys of `columns` that name no field of a form."""
QUESTIONS = ("instruction", "prompt_completion", "preference", "ranked")
"""Forms whose question is one field, and may need others to be answered."""
MAPPING = "mapping"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How the rows of a source are read."""

    form: str
    columns: dict[str, str] = {}
    """Every field of the form, and what the rows call it."""
    unseen: frozenset[str] = frozenset()
    """Names of fields that no row of the sample has, and that would go unread in a later row."""
    notices: tuple[str, ...] = ()


def find_shape(source: FileSource, sample: Sequence[Row], *, place: str) -> Shape:
    """Returns the form of a source's rows, declared or detected, and what its fields are called there.

    A form is detected if at least one row of the sample has it and no row has another; the table is in `forms`. A form
    found by its own names wins over one found by aliases, one that reads more fields over one that reads some
    of the same, and `text` yields to all. Raises DataError, starting with `place`, if none or several are left, if
    two fields could be the same one, or if `columns` names what is not there.
    """
    forms = (*FORMS, tree_form(source.tree))
    if source.messages or source.rows == MAPPING:
        return Shape(form=MAPPING)
    if not sample:
        raise DataError(f"{place}: source {source.name!r} has no good row to see its form by; mend its files")
    declared = next((form for form in forms if form.name == source.rows), None)
    form = declared or _detect(source, sample, forms, place)
    return _name_columns(form, source, sample, place)


def check_columns(source: FileSource, place: str) -> None:
    """Raises DataError naming the recipe's key if `rows`, `columns` and `messages` do not go together."""
    if source.rows == MAPPING and not source.messages:
        raise DataError(f"{place}.rows is mapping, which needs templates; write them in {place}.messages")
    if source.messages and source.rows not in ("auto", MAPPING):
        raise DataError(f"{place} has rows: {source.rows} and messages, which say different things; keep one")
    named = set(source.columns) - {"language"}
    if named and source.messages:
        raise DataError(f"{place}.columns is for known forms; in {place}.messages write the fields' own names")
    if named and source.rows == "tree":
        raise DataError(f"{place}.columns is not for trees; name their fields in {place}.tree")
    if "language" in source.columns and source.language is not None:
        raise DataError(f"{place} has columns.language and language, which say different things; keep one")
    forms = [form for form in FORMS if source.rows in ("auto", form.name)]
    known = {field.name for form in forms for field in form.fields}
    known |= {key for form in forms if form.keys for key in MESSAGE_KEYS}
    for name in sorted(named - known):
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}, language"
        raise DataError(
            f"{place}.columns.{name} is no field of a form (its values are what the rows call them); {hint}"
        )


def _detect(source: FileSource, sample: Sequence[Row], forms: Sequence[Form], place: str) -> Form:
    found: dict[str, Row] = {}
    for row in sample:
        for form in _forms_of(row.fields, forms, source.columns):
            found.setdefault(form.name, row)
    if len(found) == 1:
        return next(form for form in forms if form.name in found)
    if not found:
        raise DataError(_explain_unknown(source, sample, place))
    each = " or ".join(f"`{name}` ({row.file}:{row.line})" for name, row in found.items())
    raise DataError(
        f"{place}: rows of source {source.name!r} could be read as {each}; say which with `rows: {next(iter(found))}`, "
        f"or write `messages:` templates. Fields are {show_names(_seen(sample))}"
    )


def _forms_of(fields: Mapping[str, Any], forms: Sequence[Form], columns: Mapping[str, str]) -> list[Form]:
    """The forms a row has, without those that yield to others."""
    renamed = {name: value for name, value in fields.items() if name not in columns.values()}
    renamed |= {field: fields[name] for field, name in columns.items() if name in fields and field not in NOT_OF_ROWS}
    matches = {form: read for form in forms if (read := _match(renamed, form)) is not None}
    by_own_names = {form: read for form, read in matches.items() if {field.name for field in form.required} <= read}
    matches = by_own_names or matches
    kept = [form for form, read in matches.items() if not any(read < other for other in matches.values())]
    return [form for form in kept if form.name != "text" or len(kept) == 1]


def _match(fields: Mapping[str, Any], form: Form) -> frozenset[str] | None:
    """The names that the form reads in a row; None if the row does not have the form."""
    read = set()
    for field in form.fields:
        name = next((name for name in field.names if field.holds(fields.get(name))), None)
        if name is not None:
            read.add(name)
        elif field.required:
            return None
    return frozenset(read) if form.fits(fields) else None


def _name_columns(form: Form, source: FileSource, sample: Sequence[Row], place: str) -> Shape:
    seen = _seen(sample)
    _check_named(form, source, place)
    columns = {field.name: _pick(field, seen, source, form, place) for field in form.fields}
    if form.keys is not None:
        columns |= _pick_keys(form, columns, source, sample, place)
    unseen = {name for field in form.fields if field.name not in source.columns for name in field.names}
    if form.name in QUESTIONS and source.rows == "auto":
        _refuse_lost(form, columns, source, seen, place)
        unseen |= LOST_CONTEXT
    notices = [_tell_form(form, columns, source), *_tell_untrained(form, columns, source, sample)]
    named = [name for field, name in source.columns.items() if field not in NOT_OF_ROWS and name not in seen]
    if named:
        notices.append(f"source {source.name}: named in `columns`, but in none of the first rows: {show_names(named)}")
    if unread := [name for name in seen if name not in {*columns.values(), *LANGUAGE_FIELDS}]:
        notices.append(f"source {source.name}: not read: {show_names(unread)}")
    return Shape(
        form=form.name,
        columns=columns,
        unseen=frozenset(unseen - seen.keys() - set(columns.values())),
        notices=tuple(notices),
    )


def _check_named(form: Form, source: FileSource, place: str) -> None:
    """Refuses a name in `columns` that the form of the rows has no use for."""
    known = {"language", *(field.name for field in form.fields), *(MESSAGE_KEYS if form.keys is not None else ())}
    for name in sorted(set(source.columns) - known):
        raise DataError(
            f"{place}.columns.{name}: rows of source {source.name!r} read as `{form.name}`, which has no such field; "
            "take it out, or say which form is meant with `rows:`"
        )


def _pick(field: Field, seen: Mapping[str, Row], source: FileSource, form: Form, place: str) -> str:
    """What the rows call a field: what `columns` says, else the one of its names that they have."""
    if field.name in source.columns:
        name = source.columns[field.name]
        if name not in seen and field.required:
            near = difflib.get_close_matches(name, list(seen), n=1)
            hint = f"did you mean {near[0]}? They have" if near else "they have"
            raise DataError(
                f"{place}.columns.{field.name} is {name!r}, which the first rows do not have; {hint} {show_names(seen)}"
            )
        return name
    names = [name for name in field.names if name in seen and name not in source.columns.values()]
    if len(names) > 1:
        raise DataError(
            f"{place}: {' and '.join(map(repr, names))} could both be the {field.name} of source {source.name!r}, at "
            f"{_show_places(names, seen)}; "
            f"say which with `columns: {{{field.name}: {names[0]}}}`"
        )
    if not names and field.required:
        way = "in `tree:`" if form.name == "tree" else f"with `columns: {{{field.name}: NAME}}`"
        raise DataError(
            f"{place}: rows of form `{form.name}` need {field.name!r} (or {', '.join(field.aliases) or 'no other'}); "
            f"fields are {show_names(seen)}; name it {way}{_show_first(seen)}"
        )
    return names[0] if names else field.name


def _pick_keys(
    form: Form, columns: Mapping[str, str], source: FileSource, sample: Sequence[Row], place: str
) -> dict[str, str]:
    """What the messages of the sample call their role and content: the form's own keys, unless none has them."""
    lists = [(row, _messages_of(row.fields.get(name))) for row in sample for name in columns.values()]
    messages = [(row, message) for row, found in lists for message in found if isinstance(message, dict)]
    seen: dict[str, Row] = {}
    for row, message in messages:
        for name, value in message.items():
            if value is not None:
                seen.setdefault(name, row)
    keys = {}
    for key, own in zip(MESSAGE_KEYS, form.keys or (), strict=True):
        others = tuple(name for name in MESSAGE_KEYS[key] if name != own)
        field = Field(own, others)
        if key in source.columns:
            keys[key] = source.columns[key]
        elif own in seen:
            keys[key] = own
        else:
            keys[key] = _pick(field, seen, source, form, place)
    return keys


def _messages_of(value: Any) -> list[Any]:
    """The list that a field holds, as it is or as JSON text; none where it holds anything else."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with contextlib.suppress(DataError):
            value = take_list(value, "")
    return value if isinstance(value, list) else []


def _refuse_lost(
    form: Form, columns: Mapping[str, str], source: FileSource, seen: Mapping[str, Row], place: str
) -> None:
    """Refuses to read questions without what they are about, and unpaired preferences as if all were good."""
    lost: list[str] = sorted((LOST_CONTEXT & seen.keys()) - set(columns.values()))
    if form.name == "prompt_completion" and "label" in seen:
        lost.append("label")
    if lost:
        raise DataError(
            f"{place}: rows of source {source.name!r} read as `{form.name}` would leave out {show_names(lost)}; "
            f"say `rows: {form.name}` if that is meant, or write `messages:` templates that use them "
            f"(first at {_show_places(lost, seen)})"
        )


def _tell_form(form: Form, columns: Mapping[str, str], source: FileSource) -> str:
    own = {field.name: field.name for field in form.fields}
    if form.keys is not None:
        own |= dict(zip(MESSAGE_KEYS, form.keys, strict=True))
    taken = [f"`{name}` taken for `{own[field]}`" for field, name in columns.items() if name != own[field]]
    return f"source {source.name}: " + ", ".join([f"rows read as `{form.name}`", *taken])


def _tell_untrained(form: Form, columns: Mapping[str, str], source: FileSource, sample: Sequence[Row]) -> list[str]:
    """What of the rows is read and not trained, though it looks like answers."""
    notices = []
    if form.name in ("preference", "ranked"):
        notices.append(f"source {source.name}: the preferred answer is trained; the others are read and checked only")
    if any(isinstance(row.fields.get(columns.get("prompt", "")), list) for row in sample):
        notices.append(f"source {source.name}: answers within prompts are not trained, only the one that follows")
    return notices


def _seen(sample: Sequence[Row]) -> dict[str, Row]:
    """Names that say something in any row of the sample, in the order met, each with the first row in which it does."""
    seen: dict[str, Row] = {}
    for row in sample:
        for name, value in row.fields.items():
            if not is_empty(value):
                seen.setdefault(name, row)
    return seen


def _show_first(seen: Mapping[str, Row]) -> str:
    """Where the first row with any field stands, for the end of an error."""
    return f" (the first row is {row.file}:{row.line})" if (row := next(iter(seen.values()), None)) else ""


def _show_places(names: Sequence[str], seen: Mapping[str, Row]) -> str:
    """Where fields were met first."""
    return " and ".join(dict.fromkeys(f"{seen[name].file}:{seen[name].line}" for name in names))


def _explain_unknown(source: FileSource, sample: Sequence[Row], place: str) -> str:
    seen = _seen(sample)
    opening = f"{place}: rows of source {source.name!r} have the fields {show_names(seen)}"
    if CHOSEN.name in seen and REJECTED.name in seen:
        return f"{opening}: answers without a prompt; name its field with `columns: {{prompt: NAME}}`"
    if isinstance(sample[0].fields.get("text"), str):
        return (
            f"{opening}: a text with others beside it, which would go unread; say `rows: text` if the text alone is "
            "meant, or write `messages:` templates"
        )
    forms = "; ".join(f"{form.name} ({', '.join(field.name for field in form.required)})" for form in FORMS)
    return (
        f"{opening}, which is none of the known forms: {forms}; tree (message_id, parent_id, role, text). Name the "
        "fields of a form with `rows:` and `columns:`, or write `messages:` templates (the first row is "
        f"{sample[0].file}:{sample[0].line})"
    )
