import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import chat
from data.batch import Role
from data.chat import encode_conversation, encode_prompt, template_hash
from data.config import TokenizerConfig
from data.schema import Conversation, DataError, Turn
from data.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["ab abc"], TokenizerConfig(vocab_size=300))
BOS, END = TOKENIZER.bos_id, TOKENIZER.end_id
SYSTEM, USER, ASSISTANT, TOOL = (TOKENIZER.role_ids[role] for role in ("system", "user", "assistant", "tool"))

content = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip) | st.sampled_from(
    ["<user>", "<end>", "<bos>", "</s>", " <assistant> ", "\u2581x"]
)
turns = st.lists(st.builds(Turn, st.sampled_from(["system", "user", "assistant", "tool"]), content), max_size=5)


def talk(*turns):
    return Conversation(turns=tuple(Turn(*turn) for turn in turns), language="en", source="test", id="f.jsonl:3")


def test_literal_table_of_ids_roles_and_weights():
    encoded = encode_conversation(
        talk(("system", "!"), ("user", "?"), ("assistant", "#"), ("tool", "$"), ("assistant", "%")), TOKENIZER
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
    assert list(zip(*(array.tolist() for array in encoded), strict=True)) == rows
    assert [array.dtype for array in encoded] == [np.int32, np.int8, np.float32]


@given(turns, content)
def test_a_prompt_is_exactly_a_prefix_of_its_conversation(before, answer):
    conversation = Conversation(turns=(*before, Turn("assistant", answer)), language="en", source="test")
    ids = encode_conversation(conversation, TOKENIZER).ids.tolist()
    prompt = encode_prompt(before, TOKENIZER)
    assert ids == [*prompt, *TOKENIZER.encode(answer), END]


@given(turns, content)
def test_every_answer_and_its_end_of_turn_are_trained_and_nothing_else(before, answer):
    conversation = Conversation(turns=(*before, Turn("assistant", answer)), language="en", source="test")
    encoded = encode_conversation(conversation, TOKENIZER)
    trained = encoded.ids[encoded.weights == 1].tolist()
    answers = [turn.content for turn in conversation.turns if turn.role == "assistant"]
    assert trained == [token for text in answers for token in [*TOKENIZER.encode(text), END]]
    assert set(encoded.weights.tolist()) <= {0.0, 1.0}


@given(turns, content)
def test_bos_is_never_doubled_and_control_tokens_spelled_in_text_stay_text(before, answer):
    conversation = Conversation(turns=(*before, Turn("assistant", answer)), language="en", source="test")
    ids = encode_conversation(conversation, TOKENIZER).ids.tolist()
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
        encode_conversation(talk(*turns), TOKENIZER)


def test_template_hash_moves_with_the_template_and_not_with_the_tokenizer(monkeypatch):
    assert template_hash() == "c3042cbe2f7cbb0ac5031eee47d1eb925b6adde08dc234ad5de55c12f1c5ffc4", (
        "the template changed: old checkpoints no longer match; raise its version"
    )
    monkeypatch.setattr(chat, "DEFINITION", chat.DEFINITION | {"trained": {"assistant": ["content"]}})
    assert template_hash() != "c3042cbe2f7cbb0ac5031eee47d1eb925b6adde08dc234ad5de55c12f1c5ffc4"
