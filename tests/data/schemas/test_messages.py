"""Lists of messages, literally: what each becomes, and what is refused with the message's number."""

import pytest
from rows_of_forms import CALLS, GOOD, SAID, TURNS, converter_of, row, turns_of

from data.schema import DataError, Turn
from data.schemas.turns import ROLE_ALIASES

USER, ANSWER = SAID


def messages(*given):
    return {"messages": list(given)}


def read(*given):
    """The turns of these messages, in a source whose rows are plain ones."""
    return turns_of(messages(*given), messages(*SAID))


@pytest.mark.parametrize("form", GOOD)
def test_good_rows_become_exactly_these_turns(form):
    assert turns_of(GOOD[form]) == TURNS[form]


@pytest.mark.parametrize(("name", "role"), ROLE_ALIASES.items())
def test_roles_of_peers_are_the_four_roles(name, role):
    by_name = {"role": name, "content": "a"}
    turns = read(by_name, USER, ANSWER) if role == "system" else read(USER, by_name, ANSWER)
    assert [turn.role for turn in turns if turn.content == "a"] == [role]
    assert read(USER, {"role": "Assistant", "content": "a"})[1].role == "assistant"


def test_a_blank_system_message_is_left_out_and_two_user_turns_are_the_templates_affair():
    assert [turn.role for turn in read({"role": "system", "content": " "}, USER, USER, ANSWER)] == [
        "user",
        "user",
        "assistant",
    ]


def test_the_system_field_comes_first_unless_the_messages_begin_with_the_same():
    system = {"role": "system", "content": "s"}
    assert turns_of(messages(*SAID) | {"system": "s"})[0] == Turn("system", "s")
    assert len(turns_of(messages(system, *SAID) | {"system": "s"})) == 3
    with pytest.raises(DataError, match="two different system prompts; keep one"):
        turns_of(messages(system, *SAID) | {"system": "other"})


@pytest.mark.parametrize(
    ("mark", "train"),
    [
        ({"train": False}, False), ({"train": True}, True), ({"training": False}, False), ({"weight": 0}, False),
        ({"weight": 1.0}, True), ({"weight": 0.0, "train": False}, False), ({"train": None}, None), ({}, None),
    ],
)  # fmt: skip
def test_a_message_says_itself_whether_it_is_trained(mark, train):
    assert read(USER, ANSWER | mark)[1] == Turn("assistant", "Nzuri.", train)


def test_thoughts_stay_apart_from_the_content_under_any_of_their_names():
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert read(USER, ANSWER | {name: "t"})[1] == Turn("assistant", "Nzuri.", thoughts="t")


def test_other_keys_for_content_are_taken_with_a_notice():
    """OASST1's chains of messages say `text`, and call the user a prompter."""
    fields = {"messages": [{"role": "prompter", "text": "a"}, {"role": "assistant", "text": "b"}]}
    converter = converter_of(fields)
    assert converter.notices[0].endswith("`text` taken for `content`")
    assert turns_of(fields) == (Turn("user", "a"), Turn("assistant", "b"))


def test_messages_of_a_table_of_text_are_read_as_json():
    assert turns_of({"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'}) == (
        Turn("user", "a"),
        Turn("assistant", "b"),
    )
    sharegpt = '[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]'
    assert turns_of({"conversations": sharegpt}) == (Turn("user", "a"), Turn("assistant", "b"))
    with pytest.raises(DataError, match="field 'messages' is text that is not JSON"):
        turns_of({"messages": "[{'role': 'user'}]"})


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([USER], "ends with a user turn"),
        ([], "the row has no turns"),
        (["a"], "message 1 is the text 'a', not a message with role and content"),
        ([{"content": "a"}], r"no 'role' \(field 'messages', message 1\); it has content"),
        (
            [{"role": "usr", "content": "a"}],
            r"unknown role 'usr' \(field 'messages', message 1\); known are system, user",
        ),
        ([{"role": 1, "content": "a"}], r"the role \(.*\) is a number \(1\), not text"),
        ([USER, {"role": "assistant"}], r"the content \(field 'messages', message 2\) is null, not text"),
        ([USER, {"role": "assistant", "content": ""}], "empty assistant turn"),
        ([USER, {"role": "assistant", "content": "", "thinking": "t"}], "empty assistant turn"),
        ([{"role": "user", "content": " \n"}, ANSWER], "empty user turn"),
        ([USER, ANSWER | {"content": 42}], r"is a number \(42\), not text"),
        ([USER, ANSWER | {"content": {"a": 1}}], "is an object, not text"),
        ([USER, ANSWER | {"content": ["a"]}], "has a part that is the text 'a', not an object"),
        ([USER | {"content": [{"type": "image_url"}]}, ANSWER], "a part of type the text 'image_url'; only text"),
        ([USER | {"content": [{"type": "text", "text": None}]}, ANSWER], "a part of the content .* is null"),
        ([USER | {"images": ["i.png"]}, ANSWER], "has 'images': only text can be trained"),
        ([USER, ANSWER | {"text": "b"}], "'text' beside 'content' .*only one of them can be read"),
        ([USER | {"from": "human"}, ANSWER], "'from' beside 'role'"),
        ([USER, ANSWER | {"weight": 0.5}], r"'weight' is a number \(0.5\), not 0 or 1"),
        ([USER, ANSWER | {"train": "no"}], "'train' is the text 'no', not true or false"),
        ([USER, ANSWER | {"train": True, "weight": 0}], "both that it is trained and that it is not"),
        ([USER, ANSWER | {"train_detail": [{"begin": 0}]}], "'train_detail' is not read"),
        ([USER, ANSWER | {"thinking": "a", "reasoning": "b"}], "thinking and reasoning say different things"),
        ([USER | {"thinking": "t"}, ANSWER], "thoughts in a user turn"),
        ([USER | {"tool_calls": CALLS}, ANSWER], "tool calls in a user turn"),
        ([USER | {"tool_call_id": "c"}, ANSWER], "tool_call_id in a user turn"),
        ([USER, {"role": "system", "content": "s"}, ANSWER], "turn 2 is a system turn; it must be the first"),
        ([{"role": "system", "content": "s"}] * 2 + SAID, "turn 2 is a system turn"),
        ([USER, ANSWER | {"content": "\ud800"}], r"lone surrogate '\\ud800' in the assistant turn"),
        ([USER, ANSWER | {"thinking": "\udfff"}], r"lone surrogate '\\udfff'"),
    ],
)
def test_a_bad_message_is_refused_with_its_number(given, reason):
    with pytest.raises(DataError, match=reason) as error:
        read(*given)
    str(error.value).encode()


@pytest.mark.parametrize("name", ["images", "videos", "audio"])
def test_a_row_with_pictures_is_not_trained_as_if_it_had_none(name):
    with pytest.raises(DataError, match=f"the row has '{name}'"):
        turns_of(messages(*SAID) | {name: ["a.png"]})
    assert len(turns_of(messages(*SAID) | {name: []})) == 2


def test_a_conversation_keeps_language_task_tools_and_place():
    conversation = converter_of(GOOD["messages"], task="chat").convert(row(GOOD["messages"], line=7))
    assert conversation is not None
    assert (conversation.language, conversation.source, conversation.task, conversation.id) == (
        "sw", "x", "chat", "rows.jsonl:7",
    )  # fmt: skip
