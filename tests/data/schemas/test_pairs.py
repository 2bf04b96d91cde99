"""Instructions, prompts with completions, plain texts: literal turns and refusals."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows_of_forms import GOOD, SAID, converter_of, row, turns_of

from data.schema import DataError, Turn

ALPACA = {"instruction": "Tafsiri.", "output": "nzuri"}
PAIR = {"prompt": "Habari?", "completion": "Nzuri."}
Q, A = Turn("user", "Habari?"), Turn("assistant", "Nzuri.")


@pytest.mark.parametrize("blank", ["", None, " \n"])
def test_a_blank_input_adds_no_line(blank):
    assert turns_of(ALPACA | {"input": blank}) == (Turn("user", "Tafsiri."), Turn("assistant", "nzuri"))


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_no_text_is_stripped_split_or_normalised_on_its_way(text):
    said = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    sharegpt = [{"from": "human", "value": text}, {"from": "gpt", "value": text}]
    for fields, form in (
        ({"messages": said}, "messages"),
        ({"conversations": sharegpt}, "conversations"),
        ({"instruction": text, "output": text}, "instruction"),
        ({"prompt": text, "completion": said[1:]}, "prompt_completion"),
        ({"prompt": said[:1], "chosen": text, "rejected": "x"}, "preference"),
        ({"instruction": text, "output": [text, "x"]}, "ranked"),
    ):
        assert turns_of(fields, rows=form) == (Turn("user", text), Turn("assistant", text))
    assert turns_of({"text": text}) == (Turn("text", text),)


def test_tools_of_an_instruction_reach_the_template():
    tools = [{"name": "f"}]
    conversation = converter_of(ALPACA | {"tools": tools}).convert(row(ALPACA | {"tools": tools}))
    assert conversation is not None
    assert conversation.tools == '[{"type": "function", "function": {"name": "f"}}]'


@pytest.mark.parametrize("history", [[], None, "", "[]"])
def test_no_history_is_no_turn(history):
    assert len(turns_of(ALPACA | {"history": history})) == 2


def test_history_stands_before_the_instruction_oldest_first_and_may_be_json():
    for history in ([["a", "b"], ["c", "d"]], '[["a", "b"], ["c", "d"]]'):
        contents = [turn.content for turn in turns_of(ALPACA | {"history": history})]
        assert contents == ["a", "b", "c", "d", "Tafsiri.", "nzuri"]


def test_the_prompts_own_answers_are_not_trained_with_the_completion():
    """What TRL calls completion_only_loss: the row says which part is the answer."""
    fields = {"prompt": [*SAID, SAID[0]], "completion": [SAID[1]]}
    assert [turn.train for turn in turns_of(fields)] == [None, False, None, None]
    fields = {"prompt": [SAID[0], SAID[1] | {"train": True}, SAID[0]], "completion": "Nzuri."}
    assert [turn.train for turn in turns_of(fields)] == [None, True, None, None]


def test_a_completion_that_repeats_its_prompt_is_not_asked_twice():
    assert turns_of({"prompt": "Habari?", "completion": SAID}) == (Q, A)
    with pytest.raises(DataError, match="begins with a user turn; an answer begins with the assistant"):
        turns_of({"prompt": "Habari gani?", "completion": SAID})


@pytest.mark.parametrize(
    ("fields", "form", "reason"),
    [
        (ALPACA | {"output": None}, "instruction", "field 'output' is null, not text"),
        (ALPACA | {"output": 42}, "instruction", r"field 'output' is a number \(42\), not text"),
        (ALPACA | {"output": ""}, "instruction", r"empty assistant turn \(field 'output'\)"),
        (ALPACA | {"input": {"a": 1}}, "instruction", "field 'input' is an object, not text"),
        (ALPACA | {"instruction": " "}, "instruction", "empty user turn"),
        ({"instruction": "a"}, "instruction", "no field 'output'; fields are instruction"),
        (ALPACA | {"history": "hello"}, "instruction", "field 'history' is text that is not JSON"),
        (ALPACA | {"history": {"a": "b"}}, "instruction", "field 'history' is an object, not a list"),
        (ALPACA | {"history": [["a", "b"], ["c"]]}, "instruction", "pair 2 is a list, not a list of two texts"),
        (ALPACA | {"history": ["ab"]}, "instruction", "pair 1 is the text 'ab', not a list of two texts"),
        (ALPACA | {"history": [["a", None]]}, "instruction", "pair 1"),
        (ALPACA | {"history": [["a", ""]]}, "instruction", "empty assistant turn"),
        (ALPACA | {"system": ["s"]}, "instruction", "field 'system' is a list, not text"),
        (PAIR | {"completion": float("nan")}, "prompt_completion", r"'completion' is a number \(nan\), not text"),
        (PAIR | {"completion": True}, "prompt_completion", "'completion' is true, not text"),
        (PAIR | {"prompt": []}, "prompt_completion", "field 'prompt' is a list without messages"),
        (PAIR | {"prompt": b"a"}, "prompt_completion", "field 'prompt' is bytes, not text"),
        ({"text": ""}, "text", "field 'text' is empty"),
        ({"text": "a\udc00"}, "text", "lone surrogate"),
        ({"text": ["a"]}, "text", "field 'text' is a list, not text"),
    ],
)
def test_a_value_that_is_no_text_is_refused_and_never_printed(fields, form, reason):
    with pytest.raises(DataError, match=reason):
        turns_of(fields, GOOD[form])


def test_messages_that_a_table_spelled_as_json_are_refused_not_trained_letter_by_letter():
    """A CSV of `prompt` and `completion` written from lists holds their JSON, which nobody wants a model to say."""
    spelled = {"prompt": json.dumps(SAID[:1]), "completion": "Nzuri."}
    with pytest.raises(DataError, match=r"field 'prompt' is a list of messages spelled as JSON text"):
        turns_of(spelled, rows="prompt_completion")
    for text in ('[{"a": 1}]', "[{", '[{"role": "user"}]', "[1]"):
        assert turns_of(spelled | {"prompt": text}, rows="prompt_completion")[0].content == text
