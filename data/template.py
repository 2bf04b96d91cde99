"""Hugging Face chat templates as the source of training ids: the ids of the whole rendering, spans by construction.

Ids are those of `apply_chat_template` on the whole conversation. What is trained begins where the template's own
prompt (`add_generation_prompt`) ends and goes through the token that ends the turn. An id that holds characters on
both sides of a boundary belongs to the answer, unless it is a control token of the scaffolding before it.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import numpy as np

from data.batch import Role
from data.encoded import (
    TURN_ROLES,
    Encoded,
    check_answered,
    check_stop_ids,
    check_turns,
    name_conversation,
    shorten,
)
from data.reading import Reader, make_reader, match_any, read_ids, select_ids
from data.rendering import MANNER, compile_template, render_messages
from data.schema import Conversation, DataError, Turn
from data.spans import Span, find_contents
from data.tokenizer import Tokenizer

PROBE = (Turn("user", "Hello"), Turn("assistant", "World"))
"""Rendered once to learn how a template closes its answers."""


class _Shape(NamedTuple):
    """How the template writes the last answer of a conversation."""

    header: str
    """What `add_generation_prompt` adds; "" in templates that ignore it."""
    lead: str
    """What follows the prompt and comes before the content: "" mostly, " " or an empty think block in some."""
    closing: str
    """From the end of the content through the control token that ends the turn."""
    end_id: int
    """The last id of `closing`."""
    notices: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JinjaTemplate:
    """A `data.chat.ChatTemplate` over any tokenizer. Picklable; equal by content.

    Raises DataError where the template is no Jinja or refuses the plainest conversation, where answers do not end
    with a control token, where prompts lack the header that answers have, and where a stop id is the pad id.
    """

    tokenizer: Tokenizer
    jinja: str = dataclasses.field(repr=False)
    """The source."""
    name: str
    """What errors call it."""
    date: str = ""
    """ISO day that `strftime_now` tells of; "" for templates that do not ask."""
    extra_stop_ids: tuple[int, ...] = ()
    """Ids that end an answer besides the tokenizer's end-of-sequence and the template's end-of-turn."""

    def __post_init__(self) -> None:
        check_stop_ids(self.stop_ids, self.tokenizer.pad_id, name=self.name)

    def __reduce__(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return functools.partial(JinjaTemplate, **fields), ()

    @property
    def hash(self) -> str:
        """sha256 of the source, how it is rendered, and the day it tells of."""
        facts = {"source": self.jinja, "date": self.date, **MANNER}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end-of-turn token's, the tokenizer's end-of-sequence, then those given."""
        found = (self._shape.end_id, self.tokenizer.eos_id, *self.extra_stop_ids)
        return tuple(dict.fromkeys(token for token in found if token is not None))

    @property
    def notices(self) -> tuple[str, ...]:
        """What a user should know of the template before training with it."""
        return self._shape.notices

    def encode_conversation(self, conversation: Conversation) -> Encoded:
        """Returns ids, roles, loss weights and turns of a conversation.

        Control tokens that a content spells stay text: such a content is encoded by itself. Raises DataError
        naming template and conversation for what `ControlTemplate` refuses, for what the template refuses, for a
        rendering in which answers cannot be told apart or another turn is left out, and for one that trains nothing,
        no end of turn, or has two beginnings of text.
        """
        check_answered(conversation)
        try:
            return self._encode(conversation.turns)
        except DataError as error:
            raise DataError(f"{name_conversation(conversation)}, {self.name}: {error}") from None

    def encode_prompt(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the ids of the turns and the header of an answer, as transformers' `add_generation_prompt` does.

        Raises DataError as `encode_conversation` does.
        """
        try:
            check_turns(turns)
            text = self._render(turns, is_prompt=True)
            spans = find_contents(functools.partial(self._render, is_prompt=True), turns, text)
            return read_ids(self._reader, text, turns, spans).ids_T.tolist()
        except DataError as error:
            raise DataError(f"a prompt, {self.name}: {error}") from None

    def _encode(self, turns: Sequence[Turn]) -> Encoded:
        check_turns(turns)
        text = self._render(turns)
        spans = find_contents(self._render, turns, text)
        read = read_ids(self._reader, text, turns, spans)
        roles_T = np.full(len(read.ids_T), Role.HEADER, np.int8)
        turns_T = np.full(len(read.ids_T), -1, np.int16)
        weights_T = np.zeros(len(read.ids_T), np.float32)
        for index, (turn, span) in enumerate(zip(turns, spans, strict=True)):
            start, end = span
            if turn.role == "assistant":
                begin, finish = self._find_answer(turns[:index], text, span)
                trained_T = select_ids(read, begin, finish)
                weights_T[trained_T] = 1
                roles_T[trained_T] = Role.ASSISTANT
                start = begin if start is None else start
            if start is None or end is None:
                continue
            content_T = select_ids(read, start, end)
            roles_T[content_T] = TURN_ROLES[turn.role]
            turns_T[content_T] = index
        self._check_trained(read.ids_T[1:][weights_T[1:] > 0], text)
        return Encoded(read.ids_T, roles_T, weights_T, turns_T)

    def _find_answer(self, before: Sequence[Turn], text: str, span: Span) -> tuple[int, int]:
        """Characters of the rendering that the model is to say in the turn after `before`."""
        if span.end is None:
            raise DataError(f"turn {len(before)} does not stand once in the rendering {shorten(text)}")
        start = self._find_prompt_end(before, text, span)
        if start is None:
            raise DataError(f"cannot tell where turn {len(before)} begins in the rendering {shorten(text)}")
        closing = self._shape.closing
        if not text.startswith(closing, span.end):
            # A template may end its last answer in another way than those before; never with the next header.
            found = self._stops.match(text, span.end)
            closing = found[0] if found else ""
        return start, span.end + len(closing)

    def _find_prompt_end(self, before: Sequence[Turn], text: str, span: Span) -> int | None:
        """Where the prompt ends in the whole rendering; None if neither it nor the content's begin is there.

        Some templates write earlier turns otherwise once there are later ones. Their prompt is not how the
        rendering begins; the content's begin and what this template puts before one then give the place.
        """
        header, lead = self._shape.header, self._shape.lead
        if span.start is not None and header:  # what rendering the prompt would find, at no cost
            for said in (lead, ""):
                if text.endswith(header + said, 0, span.start):
                    return span.start - len(said)
        try:
            prompt = self._render(before, is_prompt=True) if before else None
        except DataError:
            prompt = None
        if prompt is not None and text.startswith(prompt) and len(prompt) <= (span.end or 0):
            return len(prompt)
        if span.start is None:
            return None
        return span.start - (len(lead) if text.endswith(lead, 0, span.start) else 0)

    def _check_trained(self, trained: np.ndarray, text: str) -> None:
        if not len(trained):
            raise DataError(f"no token would be trained in {shorten(text)}")
        if not np.any(np.isin(trained, self.stop_ids)):
            raise DataError(f"no end of turn would be trained, so the model would never stop, in {shorten(text)}")

    def _render(self, turns: Sequence[Turn], *, is_prompt: bool = False) -> str:
        return render_messages(
            self._compiled, turns, variables=self.tokenizer.special_tokens, add_generation_prompt=is_prompt
        )

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        return compile_template(self.jinja, name=self.name, date=self.date)

    @functools.cached_property
    def _shape(self) -> _Shape:
        try:
            return self._study()
        except DataError as error:
            raise DataError(f"{self.name}: {error}; set tokenizer.template to another") from None

    def _study(self) -> _Shape:
        text, prompt = self._render(PROBE), self._render(PROBE[:1], is_prompt=True)
        span = find_contents(self._render, PROBE, text)[1]
        if span.start is None or span.end is None:
            raise DataError(f"an answer does not stand once in the rendering {shorten(text)}")
        closing = re.compile(rf"\s*(?:{self._reader.names.pattern})+").match(text, span.end)
        if closing is None:
            raise DataError(
                f"it closes an answer with {text[span.end :]!r}, which does not begin with a control token of this "
                "tokenizer, so no model could learn to stop"
            )
        asked = self._render(PROBE[:1])
        header = prompt[len(asked) :] if prompt.startswith(asked) else ""
        lead = text[len(prompt) : span.start] if text.startswith(prompt) else ""
        if lead.strip() and prompt == asked:
            raise DataError(f"it ignores add_generation_prompt, so prompts lack {lead!r}, which answers begin with")
        notices = () if text.startswith(prompt) else (_describe_mismatch(self.name, prompt, text),)
        return _Shape(header, lead, closing[0], self.tokenizer.encode_rendered(closing[0])[-1], notices)

    @functools.cached_property
    def _reader(self) -> Reader:
        return make_reader(self.tokenizer)

    @functools.cached_property
    def _stops(self) -> re.Pattern[str]:
        """A stop token, spelled, and the space before it."""
        names = [name for name, token in self.tokenizer.control_ids.items() if token in self.stop_ids]
        return re.compile(rf"\s*(?:{match_any(names).pattern})")


def _describe_mismatch(name: str, prompt: str, text: str) -> str:
    return (
        f"{name}: the prompt {prompt!r} is not how a conversation begins, {text!r}; answers are trained from where the "
        "conversation has them, and asked for after another header"
    )
