"""What is trained: answers alone, the last one, as the row marks it, the prompt with a weight, whole texts."""

import functools

import numpy as np
import pytest
from fake_tokenizer import FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import Role
from data.chat import list_templates, load_chat
from data.config import TokenizerConfig
from data.control_template import ControlTemplate
from data.schema import Conversation, DataError, Turn
from data.source_config import LossConfig
from data.tokenizer import train_tokenizer

CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
)  # fmt: skip
TOKENIZER = FakeTokenizer(CONTROL, bos="<s>", eos="</s>")
PIECES = train_tokenizer(["ab abc"], TokenizerConfig(vocab_size=300))
TEMPLATES = (*list_templates(), "control")
TALK = (Turn("system", "S"), Turn("user", "U"), Turn("assistant", "A"), Turn("user", "V"), Turn("assistant", "B"))


@functools.cache
def chat_of(name):
    return ControlTemplate(tokenizer=PIECES) if name == "control" else load_chat(TOKENIZER, name)


def talk(*turns, **fields):
    return Conversation(turns=turns, language="en", source="test", id="f.jsonl:3", **fields)


def said(chat, encoded, weight):
    """The text of the ids of a weight, less what ends turns."""
    return chat.tokenizer.decode(encoded.ids[encoded.weights == np.float32(weight)].tolist()).replace(" ", "")


def mark(*marks):
    return tuple(Turn(turn.role, turn.content, train=train) for turn, train in zip(TALK, marks, strict=True))


POLICIES = [
    (LossConfig(), TALK, "AB", ""),
    (LossConfig(turns="last"), TALK, "B", ""),
    (LossConfig(turns="last"), mark(None, None, True, None, False), "A", ""),
    (LossConfig(turns="last"), mark(None, None, True, None, None), "AB", ""),
    (LossConfig(), mark(None, None, False, None, None), "B", ""),
    (LossConfig(), mark(True, True, None, False, None), "SUAB", ""),
    (LossConfig(prompt_weight=0.25), TALK, "AB", "SUV"),
    (LossConfig(prompt_weight=0.25, turns="last"), TALK, "B", "SUV"),
    (LossConfig(prompt_weight=0.25), mark(False, True, False, None, None), "UB", "V"),
    (LossConfig(prompt_weight=1), TALK, "SUAVB", "SUAVB"),
]


@pytest.mark.parametrize(("loss", "turns", "whole", "weighed"), POLICIES)
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "qwen3"])
def test_the_policy_and_the_rows_own_marks_say_what_is_trained(name, loss, turns, whole, weighed):
    chat = chat_of(name)
    encoded = chat.encode_conversation(talk(*turns), loss)
    assert said(chat, encoded, 1) == whole
    if loss.prompt_weight:
        assert said(chat, encoded, loss.prompt_weight) == weighed
    assert set(encoded.weights.tolist()) <= {0.0, 1.0, loss.prompt_weight}
    # Scaffolding is never trained, and the policy changes no id.
    assert not encoded.weights[encoded.roles == Role.HEADER].any()
    assert encoded.ids.tolist() == chat.encode_conversation(talk(*TALK)).ids.tolist()
    stops = np.isin(encoded.ids, chat.stop_ids) & (encoded.weights > 0)
    trained_answers = sum(turn.content in whole for turn in turns if turn.role == "assistant")
    assert stops.sum() == trained_answers


def test_literal_weights_of_a_prompt_that_is_trained_too():
    encoded = chat_of("chatml").encode_conversation(talk(*TALK[1:3]), LossConfig(prompt_weight=0.5))
    text = "user\nU", "assistant\nA"
    wanted = [0, *[0] * (len(text[0]) - 1), 0.5, 0, 0, 0, *[0] * (len(text[1]) - 1), 1, 1, 0]
    assert encoded.weights.tolist() == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_row_whose_marks_leave_out_every_answer_is_refused_and_shown(name):
    with pytest.raises(DataError, match=r"test f.jsonl:3 trains none of its assistant turns: .* 'S / U / A / V / B'"):
        chat_of(name).encode_conversation(talk(*mark(None, True, False, None, False)), LossConfig(prompt_weight=0.5))
    with pytest.raises(DataError, match="has no assistant turn, so it would train nothing"):
        chat_of(name).encode_conversation(talk(Turn("user", "U", train=True)))


TEXT = "a </s> b<|im_end|>c<end>"


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_text_is_every_token_but_the_first_and_no_template(name):
    chat = chat_of(name)
    encoded = chat.encode_conversation(talk(Turn("text", TEXT)), LossConfig(turns="last", prompt_weight=0.5))
    tokenizer = chat.tokenizer
    content = tokenizer.encode(TEXT)
    assert encoded.ids.tolist() == [tokenizer.bos_id, *content, tokenizer.eos_id]
    assert not any(tokenizer.is_control(token) for token in content)
    assert encoded.weights.tolist() == [0, *[1] * (len(content) + 1)]
    assert encoded.roles.tolist() == [Role.HEADER, *[Role.TEXT] * (len(content) + 1)]
    assert encoded.turns.tolist() == [-1, *[0] * len(content), -1]
    assert [array.dtype for array in encoded] == [np.int32, np.int8, np.float32, np.int16]


def test_a_text_of_a_tokenizer_without_ends_trains_all_but_its_first_token():
    chat = load_chat(FakeTokenizer(["<|im_start|>", "<|im_end|>"]), "chatml")
    encoded = chat.encode_conversation(talk(Turn("text", "abc")))
    assert chat.tokenizer.decode(encoded.ids.tolist()) == "abc"
    assert encoded.weights.tolist() == [0, 1, 1]
    assert encoded.roles.tolist() == [Role.TEXT] * 3
    with pytest.raises(DataError, match=r"test f.jsonl:3: no token would be trained in the text 'a'"):
        chat.encode_conversation(talk(Turn("text", "a")))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([Turn("text", " \n")], "the text is empty, so it would train nothing"),
        ([Turn("text", "abc", train=False)], "is marked `train: false`, so it would train nothing"),
        ([Turn("text", "abc"), Turn("assistant", "d")], "turn 0: a text stands by itself"),
        ([Turn("text", "a\ud800")], "test f.jsonl:3: text holds a lone surrogate"),
        ([Turn("user", "a", thoughts="b"), Turn("assistant", "c")], "the user turn has thoughts; only an assistant's"),
        ([Turn("user", "a", tool_calls="[]"), Turn("assistant", "c")], "the user turn has tool_calls; only an assis"),
    ],
)
def test_a_text_or_turn_that_makes_no_sense_is_refused(turns, message):
    with pytest.raises(DataError, match=message):
        chat_of("control").encode_conversation(talk(*turns))


@settings(max_examples=50)
@given(data=st.data(), name=st.sampled_from([name for name in TEMPLATES if name != "qwen3"]))
def test_weights_are_the_turns_whatever_the_marks(data, name):
    """Each turn's own letters have the weight that policy and mark give, and nothing else has any."""
    marks = [data.draw(st.sampled_from([None, True, False])) for _ in TALK]
    loss = LossConfig(
        turns=data.draw(st.sampled_from(["all", "last"])), prompt_weight=data.draw(st.floats(0, 1, width=32))
    )
    turns, chat = mark(*marks), chat_of(name)
    wanted = {}
    for index, turn in enumerate(turns):
        policy = (index == 4 or loss.turns == "all") if turn.role == "assistant" else loss.prompt_weight
        wanted[index] = float(policy if turn.train is None else turn.train)
    if not (wanted[2] or wanted[4]):
        with pytest.raises(DataError, match="trains none of its assistant turns"):
            chat.encode_conversation(talk(*turns), loss)
        return
    encoded = chat.encode_conversation(talk(*turns), loss)
    for index in wanted:
        assert set(encoded.weights[encoded.turns == index].tolist()) == {np.float32(wanted[index])}
    elsewhere = encoded.weights[encoded.turns < 0]
    assert set(elsewhere.tolist()) <= {0.0, 1.0}
