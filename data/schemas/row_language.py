"""Where the language of a row is said, and which one it is."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from data import languages
from data.formats.rows import Row
from data.schema import DataError
from data.schemas.forms import LANGUAGE_FIELDS
from data.schemas.values import describe, is_empty, show_names
from data.source_config import FileSource, LanguageRule

WAYS = (
    "say where it is: `language: {field: NAME}`, `{constant: sw}` for all rows, or `{file_name: 'x_(.+)[.]jsonl'}` or "
    "`{path: '/([a-z]+)/'}` where files are named by language"
)


def find_language(rule: LanguageRule, *, row: Mapping[str, Any], file_name: str) -> str:
    """Returns the row's standardised tag; `file_name` is the file's path below `data.root`.

    Raises DataError if the field is missing, the pattern does not match, or what is found names no language.
    """
    try:
        return languages.resolve(_find_code(rule, row=row, file_name=file_name), rule.codes)
    except languages.LanguageError as error:
        place = f"field {rule.field!r}: " if rule.field is not None else ""
        raise DataError(f"{place}{error}") from None


def find_rule(source: FileSource, sample: Sequence[Row], *, place: str) -> tuple[LanguageRule, tuple[str, ...]]:
    """Returns where a source says the language of its rows, and what to tell the user about it.

    That is `language` or `columns.language`; else the field of `LANGUAGE_FIELDS` that names a language in most rows of
    the sample. Raises DataError if there is none, or if two fields name languages that differ in a row.
    """
    if source.language is not None:
        return source.language, ()
    if "language" in source.columns:
        return LanguageRule(field=source.columns["language"]), ()
    counts = {name: sum(_tag(row, name) != "" for row in sample) for name in LANGUAGE_FIELDS}
    most = max(counts.values())
    if most == 0:
        raise DataError(f"{place}: rows of source {source.name!r} {_explain_none(sample)}; {WAYS}")
    found = [name for name, count in counts.items() if count > 0]
    for row in sample:
        tags = {name: tag for name in found if (tag := _tag(row, name))}
        if len(set(tags.values())) > 1:
            each = ", ".join(f"{name} {tag}" for name, tag in tags.items())
            raise DataError(
                f"{place}: fields of source {source.name!r} name different languages ({each} at "
                f"{row.file}:{row.line}); say which one counts with `language: {{field: {next(iter(tags))}}}`"
            )
    field = next(name for name in found if counts[name] == most)
    return LanguageRule(field=field), (f"source {source.name}: language of each row read from `{field}`",)


def check_language_rule(rule: LanguageRule | None, place: str) -> None:
    """Raises DataError unless the rule is usable: tags are tags, a pattern has one group."""
    if rule is None:
        return
    try:
        if rule.constant is not None:
            languages.resolve(rule.constant, rule.codes)
        for code, tag in rule.codes.items():
            _check_code(code, tag)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    for key, pattern in (("file_name", rule.file_name), ("path", rule.path)):
        if pattern is not None:
            _check_pattern(pattern, f"{place}.{key}")


def _check_code(code: str, tag: str) -> None:
    try:
        languages.standardize(tag)
    except languages.LanguageError as error:
        raise DataError(f"codes.{code}: {error}") from None


def _check_pattern(pattern: str, place: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise DataError(f"{place}: {pattern!r} is no regular expression: {error}") from None
    if groups != 1:
        raise DataError(f"{place}: the pattern {pattern!r} needs exactly one group, around the tag")


def _find_code(rule: LanguageRule, *, row: Mapping[str, Any], file_name: str) -> Any:
    """What stands where the rule points."""
    if rule.constant is not None:
        return rule.constant
    if rule.file_name is not None:
        name = PurePosixPath(file_name).name
        return _first_group(
            re.fullmatch(rule.file_name, name), f"file {name!r}", f"language.file_name {rule.file_name!r}"
        )
    if rule.path is not None:
        return _first_group(re.search(rule.path, file_name), f"path {file_name!r}", f"language.path {rule.path!r}")
    if rule.field is None or rule.field not in row:
        raise DataError(f"no field {rule.field!r} to read the language from; fields are {show_names(row)}")
    return row[rule.field]


def _first_group(found: re.Match[str] | None, what: str, rule: str) -> str:
    if found is None or found[1] is None:
        raise DataError(f"{what} does not match {rule}")
    return found[1]


def _tag(row: Row, name: str) -> str:
    """The tag that a field of a row names, or "" if it names none."""
    try:
        return languages.resolve(row.fields.get(name))
    except languages.LanguageError:
        return ""


def _explain_none(sample: Sequence[Row]) -> str:
    for row in sample:
        for name in LANGUAGE_FIELDS:
            if not is_empty(row.fields.get(name)):
                return f"name no language in `{name}` ({describe(row.fields[name])} at {row.file}:{row.line})"
    if not sample:
        return "do not say their language"
    first = sample[0]
    return f"do not say their language; fields of {first.file}:{first.line} are {show_names(first.fields)}"
