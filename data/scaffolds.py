"""What a template writes around the contents of plain conversations, learnt from one row and checked on every other.

Marking a conversation to find its texts costs a second rendering. Rows whose turns have the same roles mostly share all
that the template writes, and what one marked rendering showed holds for another row where that, with the row's own
contents between, is its rendering to the last character. Where it is not (contents are trimmed, thoughts are taken out
of them), the row is marked like the first.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from data.schema import Turn
from data.spans import Messages, Spans, TurnSpan

MOST_KEPT = 4096
"""Sequences of roles; rows of others are marked each time."""

Key = tuple[bool, tuple[str, ...]]


class Scaffolds:
    """The scaffolds of one template."""

    def __init__(self) -> None:
        self._parts: dict[Key, tuple[str, ...]] = {}

    def find_spans(self, key: Key, messages: Messages, text: str) -> Spans | None:
        """Returns where the contents stand in the rendering `text`, None where no scaffold says it.

        `key` is that of `make_key`.
        """
        parts = self._parts.get(key)
        if parts is None:
            return None
        contents = [message["content"] for message in messages]
        if "".join(chain.from_iterable(zip(parts, contents, strict=False))) + parts[-1] != text:
            return None
        turns: list[TurnSpan] = []
        given: list[tuple[int, int]] = []
        places: list[int] = []
        at = 0
        for part, content in zip(parts, contents, strict=False):
            start = at + len(part)
            at = start + len(content)
            turns.append(TurnSpan(start, at, start))
            given.append((start, at))
            places += (start, at)
        return Spans(turns, given, [], places)

    def learn(self, key: Key, messages: Messages, text: str, spans: Spans) -> None:
        """Keeps the scaffold of a rendering whose spans are known, if it writes each content once, whole, in order."""
        stands = [(span.start, span.end) for span in spans.turns]
        if spans.given != stands or spans.unknown or len(self._parts) >= MOST_KEPT:
            return
        if any(text[start:end] != each["content"] for (start, end), each in zip(spans.given, messages, strict=True)):
            return
        ends = [0, *(end for _, end in spans.given)]
        starts = [*(start for start, _ in spans.given), len(text)]
        self._parts[key] = tuple(text[end:start] for end, start in zip(ends, starts, strict=True))


def make_key(turns: Sequence[Turn], tools: list[Any] | None, *, is_prompt: bool) -> Key | None:
    """Returns what rows must share to have the same scaffold; None where there is more than contents to find."""
    if tools is not None:
        return None
    for turn in turns:
        if turn.thoughts or turn.tool_calls or turn.name or turn.tool_call_id or not turn.content:
            return None
    return is_prompt, tuple([turn.role for turn in turns])
