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
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jinja2
import numpy as np

from data.answers import Prompt, Rendering, Shape, find_answer
from data.batch import Role
from data.encoded import (
    ANSWERS_ALONE,
    TURN_ROLES,
    Encoded,
    check_stop_ids,
    check_turns,
    encode_text,
    is_text,
    name_conversation,
    shorten,
    weigh_turns,
)
from data.reading import Reader, ReadIds, make_reader, match_any, read_ids, select_ids
from data.rendering import MANNER, compile_template, make_messages, parse_tools, render_messages
from data.scaffolds import Scaffolds, make_key
from data.schema import Conversation, DataError, Turn
from data.source_config import LossConfig
from data.spans import Messages, Spans, Tools, find_spans
from data.tokenizer import Tokenizer

Result = TypeVar("Result")
QUESTION, ANSWER = Turn("user", "Hello"), Turn("assistant", "World")
"""Rendered once to learn how a template closes its answers."""
ROLE_NUMBERS = {name: int(role) for name, role in TURN_ROLES.items()}
"""NumPy takes plain numbers at a third of what members of an enumeration cost."""
HEADER, ASSISTANT = int(Role.HEADER), int(Role.ASSISTANT)
THOUGHTS = "Hello, so World."
"""Rendered once, where a row has thoughts, to learn whether the template writes any."""


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

    def encode_conversation(self, conversation: Conversation, loss: LossConfig = ANSWERS_ALONE) -> Encoded:
        """Returns ids, roles, loss weights and turns of a conversation, trained as the policy and its marks say.

        Control tokens that a text of the row spells stay text: such a text is encoded by itself. Raises DataError
        naming template and conversation for what `ControlTemplate` refuses, for what the template refuses, for a
        rendering in which answers cannot be told apart or that leaves out a turn, tools, calls or thoughts (save those
        before the last question), and for one that trains nothing, no end of turn, or has two beginnings of text.
        """
        if is_text(conversation):
            return encode_text(conversation, self.tokenizer)
        weights = weigh_turns(conversation, loss)
        try:
            return self._encode(conversation, weights)
        except DataError as error:
            raise DataError(f"{name_conversation(conversation)}, {self.name}: {error}") from None

    def encode_prompt(self, turns: Sequence[Turn], *, tools: str = "") -> list[int]:
        """Returns the ids of the turns and the header of an answer, as transformers' `add_generation_prompt` does.

        `tools` is the JSON of the tools that may be called, "" for none. Raises DataError like `encode_conversation`.
        """
        try:
            text, spans = self._read_turns(turns, tools, is_prompt=True)
            return read_ids(self._reader, text, spans).ids_T.tolist()
        except DataError as error:
            raise DataError(f"a prompt, {self.name}: {error}") from None

    def _encode(self, conversation: Conversation, weights: Sequence[float]) -> Encoded:
        turns = conversation.turns
        text, spans = self._read_turns(turns, conversation.tools)
        rendering = Rendering(text, turns, spans, self._shape, self._stops)

        def render_prompt(count: int) -> Prompt | None:
            read = _try(lambda: self._read_turns(turns[:count], conversation.tools, is_prompt=True))
            return None if read is None else Prompt(read[0], read[1].turns[-1].end if count else None)

        answers = [
            find_answer(rendering, index, render_prompt) if turn.role == "assistant" else None
            for index, turn in enumerate(turns)
        ]
        read = read_ids(self._reader, text, spans)
        encoded = _lay_out(read, turns, spans, answers, weights)
        self._check_trained(encoded, text)
        return encoded

    def _read_turns(self, turns: Sequence[Turn], tools: str, *, is_prompt: bool = False) -> tuple[str, Spans]:
        """The rendering, and where the texts of the row stand in it."""
        check_turns(turns)
        messages, given = make_messages(turns), parse_tools(tools)
        render = functools.partial(self._render, is_prompt=is_prompt)
        text = render(messages, given)
        thinking = next((index for index, turn in enumerate(turns) if turn.thoughts), None)
        if thinking is not None and not self._writes_thoughts:
            raise DataError(
                f"the template leaves out the thoughts (reasoning_content) of every answer, and turn {thinking} has "
                "some; use a template that writes them, such as qwen3, or take them out of the row"
            )
        if given is not None and text == _try(lambda: render(messages, None)):
            raise DataError(
                "the template leaves out the row's tools; use one that has a form for them, such as qwen2_5 or llama3, "
                "or take them out of the row"
            )
        key = make_key(turns, given, is_prompt=is_prompt)
        spans = None if key is None else self._scaffolds.find_spans(key, messages, text)
        if spans is None:
            spans = find_spans(render, messages, given, text, names=self._reader.names)
            if key is not None:
                self._scaffolds.learn(key, messages, text, spans)
        return text, spans

    def _check_trained(self, encoded: Encoded, text: str) -> None:
        trained = encoded.ids[1:][encoded.weights[1:] == 1]
        if not len(trained):
            raise DataError(f"no token would be trained in {shorten(text)}")
        if not self._is_stop_V[trained].any():
            raise DataError(f"no end of turn would be trained, so the model would never stop, in {shorten(text)}")

    def _render(self, messages: Messages, tools: Tools = None, *, is_prompt: bool = False) -> str:
        variables = self._variables
        return render_messages(
            self._compiled, messages, variables=variables, add_generation_prompt=is_prompt, tools=tools
        )

    @functools.cached_property
    def _scaffolds(self) -> Scaffolds:
        return Scaffolds()

    @functools.cached_property
    def _variables(self) -> dict[str, Any]:
        return dict(self.tokenizer.special_tokens)

    @functools.cached_property
    def _compiled(self) -> jinja2.Template:
        return compile_template(self.jinja, name=self.name, date=self.date)

    @functools.cached_property
    def _shape(self) -> Shape:
        try:
            return self._study()
        except DataError as error:
            raise DataError(f"{self.name}: {error}; set tokenizer.template to another") from None

    def _study(self) -> Shape:
        messages = make_messages((QUESTION, ANSWER))
        text, prompt = self._render(messages), self._render(messages[:1], is_prompt=True)
        spans = find_spans(self._render, messages, None, text, names=self._reader.names).turns
        span = spans[1]
        if span.start is None or span.end is None:
            raise DataError(f"an answer does not stand once in the rendering {shorten(text)}")
        closing = re.compile(rf"\s*(?:{self._reader.names.pattern})+").match(text, span.end)
        if closing is None:
            raise DataError(
                f"it closes an answer with {text[span.end :]!r}, which does not begin with a control token of this "
                "tokenizer, so no model could learn to stop"
            )
        asked = self._render(messages[:1])
        header = prompt[len(asked) :] if prompt.startswith(asked) else ""
        lead = text[len(prompt) : span.start] if text.startswith(prompt) else ""
        if lead.strip() and prompt == asked:
            raise DataError(f"it ignores add_generation_prompt, so prompts lack {lead!r}, which answers begin with")
        if not header and text.startswith(prompt):
            header = prompt[spans[0].end :]
        notices = () if text.startswith(prompt) else (_describe_mismatch(self.name, prompt, text),)
        return Shape(header, lead, closing[0], self.tokenizer.encode_rendered(closing[0])[-1], notices)

    @functools.cached_property
    def _writes_thoughts(self) -> bool:
        """Whether the template writes the thoughts of a last answer."""
        thinking = Turn("assistant", ANSWER.content, thoughts=THOUGHTS)
        return THOUGHTS in (_try(lambda: self._render(make_messages((QUESTION, thinking)))) or "")

    @functools.cached_property
    def _reader(self) -> Reader:
        return make_reader(self.tokenizer)

    @functools.cached_property
    def _is_stop_V(self) -> np.ndarray:
        is_stop_V = np.zeros(self.tokenizer.vocab_size, bool)
        is_stop_V[list(self.stop_ids)] = True
        return is_stop_V

    @functools.cached_property
    def _stops(self) -> re.Pattern[str]:
        names = [name for name, token in self.tokenizer.control_ids.items() if token in self.stop_ids]
        return re.compile(rf"\s*(?:{match_any(names).pattern})")


def _lay_out(
    read: ReadIds,
    turns: Sequence[Turn],
    spans: Spans,
    answers: Sequence[tuple[int, int] | None],
    weights: Sequence[float],
) -> Encoded:
    """Ids with the roles, weights and turns of the characters they hold; answers win where an id holds both."""
    wanted: list[tuple[int, int]] = []
    said: list[tuple[int, int]] = []
    for span, answer in zip(spans.turns, answers, strict=True):
        start = span.start if span.start is not None or answer is None else answer[0]
        said.append((0, 0) if start is None or span.end is None or start >= span.end else (start, span.end))
        wanted.append((0, 0) if answer is None else answer)
    slices = select_ids(read, [*said, *wanted])
    roles_T, turns_T = np.empty(len(read.ids_T), np.int8), np.empty(len(read.ids_T), np.int16)
    roles_T.fill(HEADER)
    turns_T.fill(-1)
    weights_T = np.zeros(len(read.ids_T), np.float32)
    for index, turn in enumerate(turns):
        turns_T[slices[index]] = index
        if turn.role != "assistant":
            roles_T[slices[index]] = ROLE_NUMBERS[turn.role]
            if weights[index]:
                weights_T[slices[index]] = weights[index]
    for index, answer in enumerate(slices[len(turns) :]):
        if turns[index].role == "assistant":
            roles_T[answer] = ASSISTANT
            weights_T[answer] = weights[index]
    return Encoded(read.ids_T, roles_T, weights_T, turns_T)


def _try(render: Callable[[], Result]) -> Result | None:
    """What it returns; None where the template refuses, which is for the caller to make sense of."""
    try:
        return render()
    except DataError:
        return None


def _describe_mismatch(name: str, prompt: str, text: str) -> str:
    return (
        f"{name}: the prompt {prompt!r} is not how a conversation begins, {text!r}; answers are trained from where the "
        "conversation has them, and asked for after another header"
    )
