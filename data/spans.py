"""Where the contents of turns lie in a rendered chat template: found by marking them, never by searching for them.

The conversation is rendered once more with a private-use character before and after each content. If the
rendering without those characters is the rendering itself, they say where each content begins and ends. Templates
look at contents (they trim them, or take thoughts out), so where one way of marking disturbs a template the next is
tried; a mark that the template drops leaves that end of the content unknown.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from data.schema import DataError, Turn

PRIVATE = range(0xF0000, 0x10FFFE)
"""Code points that Unicode will never give a meaning; those in the text are no marks."""

Render = Callable[[Sequence[Turn]], str]


class Span(NamedTuple):
    """Characters `start` to `end` of a rendering hold a turn's content; None where that end is not known."""

    start: int | None
    end: int | None


class _Marks(NamedTuple):
    before: str
    after: str


def find_contents(render: Render, turns: Sequence[Turn], text: str) -> list[Span]:
    """Returns one span per turn of `text`, which is `render(turns)`.

    A template that trims contents gives spans without the trimmed space. Raises DataError if no way of marking
    leaves the rest of the rendering as it is, if the template leaves a turn out, or if the text uses up the private
    characters.
    """
    first = _find_free_range(text, 2 * len(turns))
    for mark in (_mark_around, _mark_inside, _mark_ends_of_answers, _mark_answers_only):
        marked = [
            Turn(turn.role, mark(turn, _Marks(chr(first + 2 * index), chr(first + 2 * index + 1))))
            for index, turn in enumerate(turns)
        ]
        try:
            unmarked, places, seen = _take_marks(render(marked), first, 2 * len(turns))
        except DataError:
            continue  # The template looks at contents and refuses this marking; the text itself it has rendered.
        if unmarked == text:
            _check_kept(turns, marked, seen)
            return [Span(places.get(2 * index), places.get(2 * index + 1)) for index in range(len(turns))]
    raise DataError("the template changes its scaffolding with the contents, so nothing tells them apart")


def _mark_around(turn: Turn, marks: _Marks) -> str:
    return f"{marks.before}{turn.content}{marks.after}" if turn.content else ""


def _mark_inside(turn: Turn, marks: _Marks) -> str:
    """Around the content less the space at its ends, for templates that trim."""
    core = turn.content.strip()
    if not core:
        return turn.content
    head, tail = turn.content.split(core, 1)
    return f"{head}{marks.before}{core}{marks.after}{tail}"


def _mark_ends_of_answers(turn: Turn, marks: _Marks) -> str:
    """For templates that look at how answers begin (with thoughts, say)."""
    return _mark_inside(turn, marks if turn.role != "assistant" else _Marks("", marks.after))


def _mark_answers_only(turn: Turn, marks: _Marks) -> str:
    """For templates that look at other contents too (for the results of tools, say)."""
    return _mark_ends_of_answers(turn, marks) if turn.role == "assistant" else turn.content


def _check_kept(turns: Sequence[Turn], marked: Sequence[Turn], seen: set[int]) -> None:
    for index, (turn, other) in enumerate(zip(turns, marked, strict=True)):
        if other != turn and not {2 * index, 2 * index + 1} & seen:
            raise DataError(
                f"the template leaves out turn {index}, the {turn.role}'s (take it out of the row, or use a template "
                "that has it)"
            )


def _find_free_range(text: str, count: int) -> int:
    """The first of `count` private code points that the text has none of."""
    taken = [ord(character) for character in set(text) if ord(character) >= PRIVATE.start]
    for first in PRIVATE[: -count or None : max(count, 1)]:
        if not any(first <= code < first + count for code in taken):
            return first
    raise DataError(f"the text leaves no {count} private characters in a row to mark its turns with; split or clean it")


def _take_marks(marked: str, first: int, count: int) -> tuple[str, dict[int, int], set[int]]:
    """The text without marks, where each mark stood in it (less those that stood twice), and the marks there were.

    with marks A and B: "<u>AhiB<e>"  ->  "<u>hi<e>", {A: 3, B: 5}, {A, B}
    """
    parts: list[str] = []
    places: dict[int, int] = {}
    twice: set[int] = set()
    length = last = 0
    for found in re.finditer(f"[{chr(first)}-{chr(first + max(count, 1) - 1)}]", marked):
        parts.append(marked[last : found.start()])
        length, last = length + len(parts[-1]), found.end()
        mark = ord(found[0]) - first
        twice |= {mark} & places.keys()
        places[mark] = length
    parts.append(marked[last:])
    return "".join(parts), {mark: place for mark, place in places.items() if mark not in twice}, set(places)
