"""Where the texts of a row lie in a rendered chat template: found by marking them, never by searching for them.

The conversation is rendered once more with a private-use character before and after each text. If the
rendering without those characters is the rendering itself, they say where each text begins and ends. Templates
look at contents (they trim them, or take thoughts out), so where one way of marking disturbs a template the next is
tried; a mark that the template drops leaves that end of the text unknown.
"""

import bisect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.schema import DataError

PRIVATE = range(0xF0000, 0x10FFFE)
"""Code points that Unicode will never give a meaning; those in the text are no marks."""

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Any] | None
Render = Callable[[Messages, Tools], str]


class Span(NamedTuple):
    """Characters `start` to `end` of a rendering hold a text; None where that end is not known."""

    start: int | None
    end: int | None


class TurnSpan(NamedTuple):
    """Where all that a turn says stands: its thoughts, its content, its calls."""

    start: int | None
    """None where it is not known."""
    end: int | None
    first: int | None
    """The first place that is known to be in it."""


class Spans(NamedTuple):
    """What a marked rendering tells."""

    turns: list[TurnSpan]
    given: list[tuple[int, int]]
    """The texts of the row of which both ends are known, in the order of the rendering."""
    unknown: list[tuple[int, str]]
    """The others, each with its turn."""
    places: list[int]
    """Every place where a text is known to begin or end, rising."""


class _Piece(NamedTuple):
    """One text of the row, and the marks it was given."""

    turn: int
    """-1: the tools'."""
    kind: str
    """content, thoughts, call (its name), call's (what else it says), other (a tool, a name, an id)"""
    text: str
    before: str
    """"" where this end has no mark."""
    after: str


Around = Callable[[str, str, str], tuple[str, str, str]]
"""A text and two marks to the marked text and the marks that are in it."""


class _Manner(NamedTuple):
    """A way of marking: the contents of answers, of the results of tools, all other contents, thoughts."""

    answers: Around
    results: Around
    contents: Around
    thoughts: Around


class _Marker:
    """Hands out private characters, and keeps what was marked with them."""

    def __init__(self, taken: set[int], manner: _Manner, names: re.Pattern[str]) -> None:
        self.pieces: list[_Piece] = []
        self._manner, self._names = manner, names
        self._free = iter(PRIVATE) if not taken else (code for code in PRIVATE if code not in taken)

    def mark_message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the message with marks in its texts."""
        manner, marked = self._manner, dict(message)
        how = {"assistant": manner.answers, "tool": manner.results}.get(message["role"], manner.contents)
        marked["content"] = self._mark(index, "content", message["content"], how)
        if len(message) == 2:
            return marked
        if "reasoning_content" in message:
            marked["reasoning_content"] = self._mark(
                index, "thoughts", message["reasoning_content"], self._manner.thoughts
            )
        if "tool_calls" in message:
            marked["tool_calls"] = [self._mark_call(index, call) for call in message["tool_calls"]]
        for field in message.keys() & {"name", "tool_call_id"}:
            marked[field] = self.mark_spelled(index, message[field])
        return marked

    def mark_spelled(self, index: int, value: Any, kind: str = "other") -> Any:
        """Returns the value with marks around each text in it that spells a control token."""
        if isinstance(value, str):
            return self._mark(index, kind, value, _around) if self._names.search(value) else value
        if isinstance(value, list):
            return [self.mark_spelled(index, item, kind) for item in value]
        if isinstance(value, dict):
            pairs = value.items()
            return {self.mark_spelled(index, key, kind): self.mark_spelled(index, item, kind) for key, item in pairs}
        return value

    def _mark_call(self, index: int, call: dict[str, Any]) -> dict[str, Any]:
        """The call, its name marked always: nothing else tells where a turn without content stands."""
        name = call["function"]["name"]
        function = {key: self.mark_spelled(index, value, "call's") for key, value in call["function"].items()}
        function["name"] = self._mark(index, "call", name, _around)
        others = {key: self.mark_spelled(index, value, "call's") for key, value in call.items() if key != "function"}
        return {key: others.get(key, function) for key in call}

    def _mark(self, turn: int, kind: str, text: str, how: Around) -> str:
        try:
            marked, before, after = how(text, chr(next(self._free)), chr(next(self._free)))
        except StopIteration:
            raise DataError("the text leaves too few private characters to mark its turns with; clean it") from None
        self.pieces.append(_Piece(turn, kind, text, before, after))
        return marked


def find_spans(render: Render, messages: Messages, tools: Tools, text: str, *, names: re.Pattern[str]) -> Spans:
    """Returns where the texts of a row stand in `text`, which is `render(messages, tools)`.

    `names` matches a control token as it is spelled. Contents that a template trims give spans without the trimmed
    space. Raises DataError if no way of marking leaves the rest of the rendering as it is, if the template leaves
    something out (save thoughts before the last question), or if the text uses up the private characters.
    """
    taken = set(_read_codes(text)[1].tolist())
    for manner in MANNERS:
        marker = _Marker(taken, manner, names)
        try:
            marked = [marker.mark_message(index, message) for index, message in enumerate(messages)]
            marked_tools = None if tools is None else marker.mark_spelled(-1, tools)
        except RecursionError:
            raise DataError("the row's tools or calls are nested too deeply; leave the row out") from None
        try:
            rendered = render(marked, marked_tools)
        except DataError:
            continue  # The template looks at contents and refuses this marking; the text itself it has rendered.
        unmarked, places = _take_marks(rendered, taken)
        if unmarked == text:
            _check_kept(messages, marker.pieces, places)
            return _read_places(len(messages), marker.pieces, places)
    raise DataError("the template changes its scaffolding with the contents, so nothing tells them apart")


def _around(text: str, before: str, after: str) -> tuple[str, str, str]:
    return (f"{before}{text}{after}", before, after) if text else ("", "", "")


def _around_nothing_too(text: str, before: str, after: str) -> tuple[str, str, str]:
    """For results, which may be empty: what follows them is to be found all the same."""
    return f"{before}{text}{after}", before, after


def _inside(text: str, before: str, after: str) -> tuple[str, str, str]:
    """Around the text less the space at its ends, for templates that trim."""
    core = text.strip()
    if not core:
        return text, "", ""
    head, tail = text.split(core, 1)
    return f"{head}{before}{core}{after}{tail}", before, after


def _at_end(text: str, before: str, after: str) -> tuple[str, str, str]:
    """For templates that look at how answers begin (with thoughts, say)."""
    marked, _, after = _inside(text, "", after)
    return marked, "", after


def _not_at_all(text: str, before: str, after: str) -> tuple[str, str, str]:
    """For templates that look at other contents too (for the results of tools, say)."""
    return text, "", ""


MANNERS = (
    _Manner(_around, _around_nothing_too, _around, _around),
    _Manner(_inside, _inside, _inside, _inside),
    _Manner(_at_end, _inside, _inside, _inside),
    _Manner(_at_end, _not_at_all, _not_at_all, _inside),
)
"""Ways of marking, the one that tells most first."""


def _check_kept(messages: Messages, pieces: Sequence[_Piece], places: Mapping[str, list[int]]) -> None:
    last_question = max((index for index, each in enumerate(messages) if each["role"] == "user"), default=-1)
    for turn, kind, text, before, after in pieces:
        if not text or before + after == "" or before in places or after in places or kind in ("call's", "other"):
            continue
        if kind == "content":
            raise DataError(
                f"the template leaves out turn {turn}, the {messages[turn]['role']}'s (take it out of the row, or use "
                "a template that has it)"
            )
        if kind == "call" or turn > last_question:
            what = "a tool call" if kind == "call" else "the thoughts"
            raise DataError(
                f"the template leaves out {what} of turn {turn} (take them out of the row, or use a template that has "
                "them)"
            )


def _read_places(count: int, pieces: Sequence[_Piece], places: Mapping[str, list[int]]) -> Spans:
    """What the places of the marks say of `count` turns."""
    starts: list[list[int | None]] = [[] for _ in range(count)]
    ends: list[list[int | None]] = [[] for _ in range(count)]
    given: list[tuple[int, int]] = []
    unknown: list[tuple[int, str]] = []
    for piece in pieces:
        before, after = places.get(piece.before, ()), places.get(piece.after, ())
        if before and len(before) == len(after):
            given += zip(before, after, strict=True)
        elif _is_gone(piece, places):
            continue
        else:
            unknown.append((piece.turn, piece.text))
        if piece.kind in ("content", "thoughts", "call"):
            # A content that stands twice does not say where its turn does.
            is_known = piece.kind == "call" or (len(before) <= 1 and len(after) <= 1)
            starts[piece.turn].append(min(before) if before and is_known else None)
            ends[piece.turn].append(max(after) if after and is_known else None)
        elif piece.kind == "call's":
            ends[piece.turn] += after
    turns = [_join(*known) for known in zip(starts, ends, strict=True)]
    return Spans(turns, sorted(given), unknown, sorted(itertools.chain.from_iterable(places.values())))


def _is_gone(piece: _Piece, places: Mapping[str, list[int]]) -> bool:
    """Whether a text that was marked is not in the rendering; one that is empty counts as gone."""
    if not piece.text or (piece.kind == "thoughts" and not piece.text.strip()):
        return True
    return piece.before + piece.after != "" and piece.before not in places and piece.after not in places


def _join(starts: Sequence[int | None], ends: Sequence[int | None]) -> TurnSpan:
    """Where a turn stands whose texts begin and end there."""
    if len(starts) == len(ends) == 1:
        return TurnSpan(starts[0], ends[0], ends[0] if starts[0] is None else starts[0])
    known_starts, known_ends = ([each for each in found if each is not None] for found in (starts, ends))
    return TurnSpan(
        min(known_starts) if known_starts and len(known_starts) == len(starts) else None,
        max(known_ends) if known_ends and len(known_ends) == len(ends) else None,
        min((*known_starts, *known_ends), default=None),
    )


def find_last_before(spans: Spans, place: int) -> int:
    """Returns the last place before `place` where some text is known to begin or end, 0 if there is none."""
    index = bisect.bisect_left(spans.places, place)
    return spans.places[index - 1] if index else 0


def find_next(spans: Spans, place: int) -> int | None:
    """Returns the first place after `place` where some text is known to begin or end."""
    index = bisect.bisect_right(spans.places, place)
    return spans.places[index] if index < len(spans.places) else None


def _read_codes(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the private characters of a text stand, and which they are."""
    if text.isascii():
        return np.zeros(0, np.int64), np.zeros(0, np.uint32)
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.uint32)
    found = np.flatnonzero(codes >= PRIVATE.start)
    return found, codes[found]


def _take_marks(marked: str, taken: set[int]) -> tuple[str, dict[str, list[int]]]:
    """The text without marks, and where each mark stood in it.

    with marks A and B: "<u>AhiB<e>"  ->  "<u>hi<e>", {A: [3], B: [5]}
    """
    parts: list[str] = []
    places: dict[str, list[int]] = {}
    length = last = 0
    for found, code in _iterate_marks(marked, taken):
        parts.append(marked[last:found])
        length, last = length + found - last, found + 1
        places.setdefault(chr(code), []).append(length)
    parts.append(marked[last:])
    return "".join(parts), places


def _iterate_marks(marked: str, taken: set[int]) -> Iterator[tuple[int, int]]:
    found, codes = _read_codes(marked)
    for place, code in zip(found.tolist(), codes.tolist(), strict=True):
        if code not in taken:
            yield place, code
