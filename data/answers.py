"""Where in a rendering the model is to speak: from the end of the template's own prompt through the end of the turn."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from data.encoded import shorten
from data.schema import DataError, Turn
from data.spans import Spans, find_last_before, find_next


class Shape(NamedTuple):
    """How a template writes the last answer of a conversation."""

    header: str
    """What the prompt ends with: what `add_generation_prompt` adds, else what closes the question."""
    lead: str
    """What follows the prompt and comes before the content: "" mostly, " " or an empty think block in some."""
    closing: str
    """From the end of the content through the control token that ends the turn."""
    end_id: int
    """The last id of `closing`."""
    notices: tuple[str, ...]


class Rendering(NamedTuple):
    """A rendered conversation, and what is known of it."""

    text: str
    turns: Sequence[Turn]
    spans: Spans
    shape: Shape
    stops: re.Pattern[str]
    """A stop token, spelled, and the space before it."""


class Prompt(NamedTuple):
    """The first turns of a conversation, rendered as a prompt."""

    text: str
    end: int | None
    """Where the last of them ends; the rest is what the template writes before it lets the model speak."""


def find_answer(rendering: Rendering, index: int, render_prompt: Callable[[int], Prompt | None]) -> tuple[int, int]:
    """Returns the characters of the rendering that the model is to say in turn `index`.

    `render_prompt` renders the first turns as a prompt; None where the template refuses. Raises DataError where the
    turn's beginning or end is not to be told.
    """
    text, span = rendering.text, rendering.spans.turns[index]
    if span.end is None or span.first is None:
        raise DataError(f"turn {index} does not stand once in the rendering {shorten(text)}")
    start = _find_header_end(rendering, index, span.first)
    if start is None:
        start = _find_prompt_end(rendering, index, render_prompt)
    if start is None:
        raise DataError(f"cannot tell where turn {index} begins in the rendering {shorten(text)}")
    return start, _find_end(rendering, index, span.end)


def _find_header_end(rendering: Rendering, index: int, first: int) -> int | None:
    """Where the header of an answer ends that follows the turn before it; what rendering the prompt would find, at no
    cost. None if there is no such header, or it is not known to be the template's."""
    text, spans, header = rendering.text, rendering.spans, rendering.shape.header
    before = spans.turns[index - 1].end if index else 0
    if before is None or before > first or not header:
        return None
    found = text.find(header, max(before, find_last_before(spans, first)), first)
    return None if found < 0 else found + len(header)


def _find_prompt_end(rendering: Rendering, index: int, render_prompt: Callable[[int], Prompt | None]) -> int | None:
    """Where the prompt ends in the whole rendering; None if nothing tells.

    Some templates write earlier turns otherwise once there are later ones. Their prompt is not how the rendering
    begins; but what follows its last turn is what follows that turn here. Where that is not so either, the content's
    begin and what this template puts before one give the place.
    """
    text, turn, spans = rendering.text, rendering.turns[index], rendering.spans
    span = spans.turns[index]
    first = span.end or 0 if span.first is None else span.first
    prompt = render_prompt(index)
    if prompt is not None and text.startswith(prompt.text) and len(prompt.text) <= first:
        return len(prompt.text)
    if prompt is not None and index and prompt.end is not None:
        # One of the two may count space at the content's end as the template's, where the other does not.
        tail, last = prompt.text[prompt.end :].lstrip(), spans.turns[index - 1].end
        if tail and last is not None:
            begin = last + len(text[last:first]) - len(text[last:first].lstrip())
            if begin + len(tail) <= first and text.startswith(tail, begin):
                return begin + len(tail)
    if span.start is None or turn.thoughts or not turn.content.strip():
        return None
    lead = rendering.shape.lead
    return span.start - (len(lead) if text.endswith(lead, 0, span.start) else 0)


def _find_end(rendering: Rendering, index: int, last: int) -> int:
    """Where the end of turn ends that follows what was said."""
    text, closing = rendering.text, rendering.shape.closing
    if text.startswith(closing, last):
        return last + len(closing)
    if rendering.turns[index].tool_calls:
        # Between the last text of a call and the next of the row there is only what the template writes.
        limit = find_next(rendering.spans, last)
        found = rendering.stops.search(text, last, len(text) if limit is None else limit)
    else:
        # A template may end its last answer in another way than those before; never with the next header.
        found = rendering.stops.match(text, last)
    return found.end() if found else last
