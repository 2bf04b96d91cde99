"""From a row to a conversation, in whatever form the rows of a source are: made once a source, sent to any process."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from data.formats.rows import Row
from data.mapping import CompiledMapping, compile_mapping, is_wanted, make_context, render_turns
from data.schema import Conversation, DataError, Turn
from data.schemas.detection import MAPPING, Shape, check_columns, find_shape
from data.schemas.forms import is_only_text
from data.schemas.messages import MessageKeys, read_messages, refuse_media
from data.schemas.pairs import Columns, Fields, read_instruction, read_prompt_completion, read_text
from data.schemas.preference import read_best
from data.schemas.row_language import check_language_rule, find_language, find_rule
from data.schemas.tools import read_tools
from data.schemas.turns import add_system, check_order
from data.schemas.values import is_empty, printable, show_names, take_optional_text
from data.source_config import FileSource, LanguageRule

SAMPLE_ROWS = 64
"""Rows of a source that its form is seen by."""
TREE = "tree"


def check_file_source(source: FileSource, place: str) -> None:
    """Raises DataError naming the recipe's key for what cannot work whatever the rows are; reads no file."""
    check_language_rule(source.language, f"{place}.language")
    check_columns(source, place)
    compile_mapping(source, place)


def make_converter(source: FileSource, sample: Sequence[Row], *, place: str) -> "Converter":
    """Returns the converter of a source, its form and language field seen by the first rows (`SAMPLE_ROWS`).

    `place` is the source's key in the recipe, for messages. Raises DataError for a recipe that cannot work
    (`check_file_source`), and for rows whose form or language is not known or not clear.
    """
    check_file_source(source, place)
    shape = find_shape(source, sample, place=place)
    rule, notices = find_rule(source, sample, place=place)
    return Converter(source, shape, rule, notices=(*shape.notices, *notices), place=place)


class Converter:
    """Turns rows of one source into conversations. It can be pickled; templates are compiled where they are used."""

    def __init__(
        self, source: FileSource, shape: Shape, rule: LanguageRule, *, notices: tuple[str, ...], place: str
    ) -> None:
        self.source = source
        self.shape = shape
        self.rule = rule
        self.notices = notices
        """What was detected, for the user to see: the form, aliases, fields that are not read."""
        self.place = place

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_mapping"}

    @property
    def form(self) -> str:
        """The form of the rows: `mapping`, or one of the table in `forms`."""
        return self.shape.form

    def find_language(self, row: Row) -> str:
        """Returns the row's standardised tag. Raises DataError if it names none."""
        return find_language(self.rule, row=row.fields, file_name=row.file)

    def is_wanted(self, row: Row, *, language: str) -> bool:
        """Whether the row passes `where`. Raises DataError if the expression fails on it."""
        if self.source.where is None:
            return True
        return is_wanted(self._mapping, make_context(row.fields, language=language, line=row.line))

    def convert(self, row: Row) -> Conversation | None:
        """Returns the row's conversation, or None where `where` leaves it out.

        Raises DataError with the reason, without the place, for a row that is none of its form; nothing is guessed.
        """
        if self.form == TREE:
            raise ValueError("a message of a tree is no conversation by itself; read whole trees with data.trees")
        try:
            language = self.find_language(row)
            if not self.is_wanted(row, language=language):
                return None
            turns, tools = self._read(row, language)
        except DataError as error:
            raise DataError(printable(str(error))) from None
        return Conversation(
            turns=turns,
            language=language,
            source=self.source.name,
            task=self.source.task,
            id=f"{row.file}:{row.line}",
            tools=tools,
        )

    @cached_property
    def _mapping(self) -> CompiledMapping:
        return compile_mapping(self.source, self.place)

    def _read(self, row: Row, language: str) -> tuple[tuple[Turn, ...], str]:
        """The turns of a row, and JSON text of its tools."""
        fields, columns = row.fields, self.shape.columns
        if self.form == MAPPING:
            return render_turns(self._mapping, make_context(fields, language=language, line=row.line)), ""
        self._refuse_unseen(fields)
        refuse_media(fields, "the row")
        turns = READERS[self.form](fields, columns)
        if self.form != "text":
            turns = check_order(turns)
        name = columns.get("tools", "")
        return turns, read_tools(fields.get(name), f"field {name!r}")

    def _refuse_unseen(self, fields: Mapping[str, Any]) -> None:
        for name in self.shape.unseen & fields.keys():
            if not is_empty(fields[name]):
                raise DataError(
                    f"field {name!r} would go unread: none of the first {SAMPLE_ROWS} rows has it; "
                    f"name it in `columns`, or leave such rows out with `where`"
                )
        if self.form == "text" and self.source.rows == "auto" and not is_only_text(fields, self.shape.columns["text"]):
            raise DataError(
                f"other fields beside the text: {show_names(fields)}; say `rows: text` if it alone is meant"
            )


def _read_list(fields: Fields, columns: Columns, name: str) -> tuple[Turn, ...]:
    keys = MessageKeys(columns["role"], columns["content"])
    if name not in fields:
        raise DataError(f"no field {name!r}; fields are {show_names(fields)}")
    turns = read_messages(fields[name], keys, f"field {name!r}")
    return add_system(take_optional_text(fields, columns["system"]), turns, f"field {columns['system']!r}")


READERS: dict[str, Callable[[Fields, Columns], tuple[Turn, ...]]] = {
    "messages": lambda fields, columns: _read_list(fields, columns, columns["messages"]),
    "conversations": lambda fields, columns: _read_list(fields, columns, columns["conversations"]),
    "instruction": read_instruction,
    "prompt_completion": read_prompt_completion,
    "preference": read_best("preference"),
    "ranked": read_best("ranked"),
    "text": read_text,
}
"""How the rows of each form become turns. Trees are read whole, in `data.trees`."""
