"""Texts that must not be trained on, read from the files a recipe names."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from data.bad_rows import BadRows
from data.cleaning_config import EvaluationSet
from data.schema import DataError
from data.source_config import FileSource
from data.source_rows import find_source_files, read_rows


class Passage(NamedTuple):
    """One text of an evaluation row, and where it stands."""

    set_name: str
    file: str
    line: int
    field: str
    text: str


def read_passages(evaluation_set: EvaluationSet, *, root: str, bad_rows: BadRows) -> Iterator[Passage]:
    """Yields the texts of a set's rows that are looked for, field by field.

    Raises DataError if a file is missing, a row cannot be read (as `bad_rows` has it), or no row has a field that the
    recipe names.
    """
    name = evaluation_set.name or evaluation_set.path
    source = FileSource(name=name, path=evaluation_set.path)
    seen: set[str] = set()
    for row in read_rows(source, find_source_files(source, root), bad_rows=bad_rows):
        seen.update(row.fields)
        for field in evaluation_set.fields or row.fields:
            for text in walk_texts(row.fields.get(field)):
                yield Passage(name, row.file, row.line, field, text)
    missing = [field for field in evaluation_set.fields if field not in seen]
    if missing:
        raise DataError(
            f"evaluation set {name!r}: no row has a field {missing[0]!r}; the fields are {', '.join(sorted(seen))}"
        )


def walk_texts(value: Any) -> Iterator[str]:
    """Yields the strings of a JSON value, however deep; keys of objects are not texts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from walk_texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk_texts(inner)
