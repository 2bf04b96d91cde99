"""A long example is cut between turns or not at all; what is kept is what the template writes, losses are counted."""

import functools
import json

import numpy as np
import pytest
from fake_tokenizer import FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import Role
from data.chat import load_chat
from data.config import TokenizerConfig
from data.control_template import ControlTemplate
from data.fitting import fit_example
from data.schema import Conversation, DataError, Turn
from data.source_config import LossConfig
from data.tokenizer import train_tokenizer

CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]",
    "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip
TOKENIZER = FakeTokenizer(CONTROL, bos="<s>", eos="</s>")
PIECES = train_tokenizer(["ab abc"], TokenizerConfig(vocab_size=300))
TEMPLATES = ("chatml", "mistral", "llama3", "qwen3", "plain", "control")
TOOLS = json.dumps([{"type": "function", "function": {"name": "f", "parameters": {}}}])
CALL = json.dumps([{"type": "function", "id": "a" * 9, "function": {"name": "f", "arguments": {"x": 1}}}])


@functools.cache
def chat_of(name):
    return ControlTemplate(tokenizer=PIECES) if name == "control" else load_chat(TOKENIZER, name)


def talk(*turns, **fields):
    return Conversation(turns=turns, language="sw", source="test", id="f.jsonl:3", **fields)


def fit(conversation, *, row_length, overlong, name="control", loss=LossConfig()):  # noqa: B008
    return fit_example(conversation, chat_of(name), loss=loss, row_length=row_length, overlong=overlong)


def read(encoded, name="control"):
    return chat_of(name).tokenizer.decode(encoded.ids.tolist())


def read_trained(encoded, name="control"):
    return chat_of(name).tokenizer.decode(encoded.ids[encoded.weights == 1].tolist())


def rounds(*pairs):
    return [Turn(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


LONG = talk(Turn("system", "S"), *rounds(("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")))
"""28 ids of the control template: one, and three for each turn. A round is six."""


def test_an_example_that_fits_is_kept_whole_whatever_the_policy():
    for overlong in ("drop", "truncate", "split", "error"):
        fitted = fit(LONG, row_length=27, overlong=overlong)
        assert [each.ids.tolist() for each in fitted.kept] == [
            chat_of("control").encode_conversation(LONG).ids.tolist()
        ]
        assert fitted[1:4] == (27, 0, 0)


def test_dropping_and_refusing():
    assert fit(LONG, row_length=26, overlong="drop") == ((), 27, 27, 9, ())
    with pytest.raises(
        DataError, match=r"test f.jsonl:3 \(sw\) fills 27 positions but data.packing.row_length is 26; set"
    ):
        fit(LONG, row_length=26, overlong="error")


@pytest.mark.parametrize(
    ("row_length", "kept", "lost_positions", "lost_turns"),
    [
        (26, "SaAbBcC", 6, 2), (21, "SaAbBcC", 6, 2), (20, "SaAbB", 12, 4), (15, "SaAbB", 12, 4), (14, "SaA", 18, 6),
        (9, "SaA", 18, 6), (8, None, 27, 9),
    ],
)  # fmt: skip
def test_truncation_keeps_the_longest_beginning_that_ends_with_an_answer(row_length, kept, lost_positions, lost_turns):
    fitted = fit(LONG, row_length=row_length, overlong="truncate")
    assert [read(each) for each in fitted.kept] == ([] if kept is None else [kept])
    assert fitted[1:4] == (27, lost_positions, lost_turns)


@pytest.mark.parametrize(
    ("row_length", "kept"),
    [(26, ["SaAbBcC", "SdD"]), (20, ["SaAbB", "ScCdD"]), (14, ["SaA", "SbB", "ScC", "SdD"]), (8, [])],
)
def test_splitting_repeats_the_system_turn_and_trains_every_answer_once(row_length, kept):
    fitted = fit(LONG, row_length=row_length, overlong="split", loss=LossConfig(prompt_weight=0.5))
    assert [read(each) for each in fitted.kept] == kept
    assert fitted[1:4] == ((27, 0, 0) if kept else (27, 27, 9))
    weighed = [read(each._replace(ids=each.ids[each.weights > 0])) for each in fitted.kept]
    assert weighed == [text if index == 0 else text[1:] for index, text in enumerate(kept)]


def test_a_round_too_long_by_itself_keeps_what_fits_and_the_others_stay():
    middle = [Turn("user", "b"), Turn("assistant", "B"), Turn("tool", "t"), Turn("assistant", "x" * 30)]
    fitted = fit(talk(*rounds(("a", "A")), *middle, *rounds(("c", "C"))), row_length=10, overlong="split")
    assert [read(each) for each in fitted.kept] == ["aA", "bB", "cC"]
    assert fitted[1:4] == (53, 35, 2)
    alone = talk(*rounds(("a" * 30, "A"), ("c", "C")))
    fitted = fit(alone, row_length=10, overlong="split")
    assert [read(each) for each in fitted.kept] == ["cC"]
    assert fitted[1:4] == (41, 36, 2)


def test_an_answer_cut_off_entirely_leaves_no_row_that_trains_nothing():
    """What TRL kept as a row with loss 0.0 (huggingface/trl#6668)."""
    conversation = talk(Turn("user", "q" * 9), Turn("assistant", "A" * 30))
    for overlong in ("truncate", "split"):
        assert fit(conversation, row_length=20, overlong=overlong) == ((), 43, 43, 2, ())


def test_the_answer_that_the_policy_trains_is_chosen_before_the_cut():
    last = LossConfig(turns="last")
    assert fit(LONG, row_length=20, overlong="truncate", loss=last) == ((), 27, 27, 9, ())
    fitted = fit(LONG, row_length=20, overlong="split", loss=last)
    # Rounds that train nothing are context where they fit, and lost where they do not.
    assert [(read(each), read_trained(each)) for each in fitted.kept] == [("ScCdD", "D")]
    assert fitted[1:4] == (27, 12, 4)


def test_what_follows_the_last_answer_of_a_group_is_lost_and_counted():
    turns = [*rounds(("a", "A"), ("b", "B")), Turn("user", "c")]
    fitted = fit(talk(*turns), row_length=10, overlong="split")
    assert [read(each) for each in fitted.kept] == ["aA", "bB"]
    assert fitted[1:4] == (15, 3, 1)


def test_calls_and_their_results_stay_together_and_tools_are_in_every_piece():
    calling = [Turn("user", "a"), Turn("assistant", "", tool_calls=CALL), Turn("tool", "7", tool_call_id="a" * 9)]
    turns = [*calling, Turn("assistant", "seven"), *calling, Turn("assistant", "again")]
    for name in ("llama3", "mistral"):
        whole = chat_of(name).encode_conversation(talk(*turns, tools=TOOLS))
        fitted = fit(talk(*turns, tools=TOOLS), row_length=len(whole.ids) - 2, overlong="split", name=name)
        halves = [talk(*turns[:4], tools=TOOLS), talk(*turns[4:], tools=TOOLS)]
        assert [each.ids.tolist() for each in fitted.kept] == [
            chat_of(name).encode_conversation(half).ids.tolist() for half in halves
        ]


@pytest.mark.parametrize("count", range(1, 12))
def test_a_text_is_cut_between_tokens_and_every_token_is_trained_once(count):
    text = "abcdefghij"[:count]
    whole = chat_of("chatml").encode_conversation(talk(Turn("text", text))).ids.tolist()
    fitted = fit(talk(Turn("text", text)), row_length=4, overlong="split", name="chatml")
    assert [target for each in fitted.kept for target in each.ids[1:].tolist()] == whole[1:]
    assert all(each.weights.tolist() == [0, *[1] * (len(each.ids) - 1)] for each in fitted.kept)
    assert all(2 <= len(each.ids) <= 5 for each in fitted.kept)
    assert all(one.ids[-1] == other.ids[0] for one, other in zip(fitted.kept, fitted.kept[1:], strict=False))
    assert fitted[1:4] == (len(whole) - 1, 0, 0)
    assert set(fitted.kept[-1].roles[1:].tolist()) == {Role.TEXT}
    beginning = fit(talk(Turn("text", text)), row_length=4, overlong="truncate", name="chatml")
    assert beginning.kept[0].ids.tolist() == whole[:5]
    assert (len(beginning.kept), *beginning[1:4]) == (1, len(whole) - 1, max(len(whole) - 5, 0), 0)


turns_strategy = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.integers(1, 12), min_size=1, max_size=2), st.booleans()),
    min_size=1,
    max_size=6,
)


def build(shape, *, has_system):
    """A conversation whose answers all differ."""
    turns, at = [Turn("system", "sys")] if has_system else [], 0
    for question, answers, train in shape:
        turns.append(Turn("user", "q" * question))
        for length in answers[:1]:
            turns.append(Turn("assistant", chr(0x4E00 + at) * length, train=None if train else False))
            at += 1
    return talk(*turns)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(shape=turns_strategy, has_system=st.booleans(), row_length=st.integers(8, 160))
def test_pieces_fit_train_something_and_are_the_template_on_fewer_turns(name, shape, has_system, row_length):
    conversation, chat = build(shape, has_system=has_system), chat_of(name)
    trained = [turn for turn in conversation.turns if turn.role == "assistant" and turn.train is None]
    if not trained:
        return
    stops = [at + 1 for at, turn in enumerate(conversation.turns) if turn.role == "assistant"]
    fitted = fit(conversation, row_length=row_length, overlong="truncate", name=name)
    lengths = {}
    for stop in stops:
        turns = conversation.turns[:stop]
        if any(turn.role == "assistant" and turn.train is None for turn in turns):
            lengths[stop] = chat.encode_conversation(talk(*turns)).ids
    fitting = [stop for stop, ids in lengths.items() if len(ids) - 1 <= row_length]
    assert [each.ids.tolist() for each in fitted.kept] == ([lengths[fitting[-1]].tolist()] if fitting else [])
    pieces = fit(conversation, row_length=row_length, overlong="split", name=name).kept
    assert all(len(each.ids) - 1 <= row_length and np.any(each.weights[1:] == 1) for each in pieces)
    said = "".join(read_trained(each, name) for each in pieces)
    counts = {turn.content: said.count(turn.content[0]) for turn in conversation.turns if turn.role == "assistant"}
    for turn in conversation.turns:
        if turn.role == "assistant":
            assert counts[turn.content] in ((0, len(turn.content)) if turn.train is None else (0,))
    if fitting and fitting[-1] == len(conversation.turns):
        assert sum(counts.values()) == sum(len(turn.content) for turn in trained)


def test_a_long_conversation_is_cut_with_few_renderings(monkeypatch):
    conversation = talk(Turn("system", "S"), *rounds(*[("q" * (at % 7 + 1), "A" * (at % 5 + 1)) for at in range(300)]))
    chat, calls = chat_of("chatml"), []
    original = type(chat).encode_conversation
    monkeypatch.setattr(
        type(chat),
        "encode_conversation",
        lambda self, *given: calls.append(len(given[0].turns)) or original(self, *given),
    )
    fitted = fit(conversation, row_length=2000, overlong="truncate", name="chatml")
    assert len(fitted.kept) == 1 and len(calls) <= 4
    calls.clear()
    pieces = fit(conversation, row_length=2000, overlong="split", name="chatml").kept
    # The whole once, and each piece about twice.
    assert sum(calls) < 601 + 4 * 601 and len(pieces) == 5
