import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import control_template
from data.batch import Role
from data.config import TokenizerConfig
from data.control_template import ControlTemplate, template_hash
from data.rendering import compile_template, make_messages, render_messages
from data.schema import Conversation, DataError, Turn
from data.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["ab abc"], TokenizerConfig(vocab_size=300))
CHAT = ControlTemplate(tokenizer=TOKENIZER)
BOS, END = TOKENIZER.bos_id, TOKENIZER.end_id
SYSTEM, USER, ASSISTANT, TOOL = (TOKENIZER.role_ids[role] for role in ("system", "user", "assistant", "tool"))

content = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip) | st.sampled_from(
    ["<user>", "<end>", "<bos>", "</s>", " <assistant> ", "\u2581x"]
)
turns = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant", "tool"]), content), max_size=5)


def talk(*turns):
    return Conversation(turns=tuple(Turn(*turn) for turn in turns), language="en", source="test", id="f.jsonl:3")


def test_literal_table_of_ids_roles_and_weights():
    encoded = CHAT.encode_conversation(
        talk(("system", "!"), ("user", "?"), ("assistant", "#"), ("tool", "$"), ("assistant", "%"))
    )
    byte = {mark: TOKENIZER.encode(mark)[0] for mark in "!?#$%"}
    rows = [
        (BOS, Role.HEADER, 0),
        (SYSTEM, Role.HEADER, 0),
        (byte["!"], Role.SYSTEM, 0),
        (END, Role.SYSTEM, 0),
        (USER, Role.HEADER, 0),
        (byte["?"], Role.USER, 0),
        (END, Role.USER, 0),
        (ASSISTANT, Role.HEADER, 0),
        (byte["#"], Role.ASSISTANT, 1),
        (END, Role.ASSISTANT, 1),
        (TOOL, Role.HEADER, 0),
        (byte["$"], Role.TOOL, 0),
        (END, Role.TOOL, 0),
        (ASSISTANT, Role.HEADER, 0),
        (byte["%"], Role.ASSISTANT, 1),
        (END, Role.ASSISTANT, 1),
    ]
    assert list(zip(*(array.tolist() for array in encoded[:3]), strict=True)) == rows
    assert encoded.turns.tolist() == [-1, -1, 0, -1, -1, 1, -1, -1, 2, -1, -1, 3, -1, -1, 4, -1]
    assert [array.dtype for array in encoded] == [np.int32, np.int8, np.float32, np.int16]


@given(turns, content)
def test_a_prompt_is_exactly_a_prefix_of_its_conversation(before, answer):
    conversation = Conversation(turns=(*before, Turn("assistant", answer)), language="en", source="test")
    ids = CHAT.encode_conversation(conversation).ids.tolist()
    prompt = CHAT.encode_prompt(before)
    assert ids == [*prompt, *TOKENIZER.encode(answer), END]


@given(turns, content)
def test_every_answer_and_its_end_of_turn_are_trained_and_nothing_else(before, answer):
    conversation = Conversation(turns=(*before, Turn("assistant", answer)), language="en", source="test")
    encoded = CHAT.encode_conversation(conversation)
    trained = encoded.ids[encoded.weights == 1].tolist()
    answers = [turn.content for turn in conversation.turns if turn.role == "assistant"]
    assert trained == [token for text in answers for token in [*TOKENIZER.encode(text), END]]
    assert set(encoded.weights.tolist()) <= {0.0, 1.0}


@given(turns, content)
def test_bos_is_never_doubled_and_control_tokens_spelled_in_text_stay_text(before, answer):
    conversation = Conversation(turns=(*before, Turn("assistant", answer)), language="en", source="test")
    ids = CHAT.encode_conversation(conversation).ids.tolist()
    assert ids.count(BOS) == 1 and ids[0] == BOS
    assert ids.count(END) == len(conversation.turns) and ids[-1] == END
    assert [token for token in ids if token in TOKENIZER.role_ids.values()] == [
        TOKENIZER.role_ids[turn.role] for turn in conversation.turns
    ]
    assert TOKENIZER.decode(ids) == "".join(turn.content for turn in conversation.turns)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "no assistant turn"),
        ([("user", "a")], "f.jsonl:3 has no assistant turn"),
        ([("user", "a"), ("assistant", "")], "turn 1: the assistant turn is empty"),
        ([("user", "a"), ("assistant", " \n")], "turn 1: the assistant turn is empty"),
        ([("user", ""), ("assistant", "a")], "turn 0: the user turn is empty"),
        ([("human", "a"), ("assistant", "b")], "unknown role 'human'; use one of system, user"),
        ([("user", "a\ud800"), ("assistant", "b")], "turn 0: text holds a lone surrogate"),
    ],
)
def test_a_row_that_would_train_nothing_or_nonsense_is_refused(turns, message):
    with pytest.raises(DataError, match=message):
        CHAT.encode_conversation(talk(*turns))


@given(turns)
def test_the_jinja_source_renders_to_the_same_ids(before):
    template = compile_template(CHAT.jinja, name="control", date="")
    # A spelled control token is text to the one and a control token to the other; only there do they differ.
    plain = [Turn(turn.role, turn.content.replace("<", "(")) for turn in before]
    text = render_messages(template, make_messages(plain), variables={}, add_generation_prompt=True)
    assert TOKENIZER.encode_rendered(text) == CHAT.encode_prompt(plain)


def test_ids_that_end_an_answer_are_the_end_of_turn_then_those_given_and_never_the_pad():
    assert CHAT.stop_ids == (END,)
    assert ControlTemplate(tokenizer=TOKENIZER, extra_stop_ids=(7, END, 7)).stop_ids == (END, 7)
    with pytest.raises(DataError, match="the pad id 0 is also a stop id"):
        ControlTemplate(tokenizer=TOKENIZER, extra_stop_ids=(TOKENIZER.pad_id,))


def test_template_hash_moves_with_the_template_and_not_with_the_tokenizer(monkeypatch):
    assert template_hash() == "c3042cbe2f7cbb0ac5031eee47d1eb925b6adde08dc234ad5de55c12f1c5ffc4", (
        "the template changed: old checkpoints no longer match; raise its version"
    )
    monkeypatch.setattr(
        control_template, "DEFINITION", control_template.DEFINITION | {"trained": {"assistant": ["content"]}}
    )
    assert template_hash() != "c3042cbe2f7cbb0ac5031eee47d1eb925b6adde08dc234ad5de55c12f1c5ffc4"
