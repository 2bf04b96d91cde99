"""Tools, calls, results and thoughts: spans by construction, text stays text, and nothing is left out unsaid."""

import functools
import json

import numpy as np
import pytest
from fake_tokenizer import FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import Role
from data.chat import load_chat
from data.control_template import ControlTemplate
from data.rendering import make_messages, parse_tools
from data.schema import Conversation, DataError, Turn
from data.source_config import LossConfig
from data.template import JinjaTemplate

CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]",
    "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
)  # fmt: skip
TOKENIZER = FakeTokenizer(CONTROL, bos="<s>", eos="</s>")
NAMES = ("llama3", "mistral", "qwen2_5", "qwen3")
ID = "abc456789"


@functools.cache
def chat_of(name):
    return load_chat(TOKENIZER, name)


def mine(source, tokenizer=TOKENIZER):
    return JinjaTemplate(tokenizer=tokenizer, jinja=source, name="mine")


def make_tools(description="d"):
    function = {"name": "f", "description": description, "parameters": {"type": "object"}}
    return json.dumps([{"type": "function", "function": function}], ensure_ascii=False)


def make_calls(*arguments, name="f"):
    functions = [{"name": name, "arguments": each} for each in arguments]
    return json.dumps([{"type": "function", "id": ID, "function": each} for each in functions], ensure_ascii=False)


def calling(arguments, content="", **fields):
    return Turn("assistant", content, tool_calls=make_calls(arguments), **fields)


def calls(text):
    return Turn("assistant", "", tool_calls=text)


def result(content):
    return Turn("tool", content, tool_call_id=ID, name="f")


def talk(*turns, tools=None):
    given = make_tools() if tools is None else tools
    return Conversation(turns=turns, language="en", source="test", id="f.jsonl:3", tools=given)


def asked(answer, **fields):
    """One question, an answer, a result, an answer."""
    return talk(Turn("user", "U"), answer, result("R"), Turn("assistant", "A"), **fields)


def show(ids):
    spelled = {token: name for name, token in TOKENIZER.control_ids.items()}
    return "".join(spelled.get(token) or TOKENIZER.decode([token]) for token in ids)


def answers_of(encoded):
    """What is trained, span by span."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], encoded.weights, [0])) > 0))
    return [show(encoded.ids[start:end].tolist()) for start, end in edges.reshape(-1, 2)]


TALK = (
    Turn("user", "U"), calling({"x": "X", "n": 3}), result("R"), calling({"x": "Y"}), result("Q"),
    Turn("assistant", "A"), Turn("user", "V"), calling({"n": 4}), result("P"), Turn("assistant", "B"),
)  # fmt: skip
QWEN = '<tool_call>\n{{"name": "f", "arguments": {}}}\n</tool_call><|im_end|>'
ANSWERS = {
    "qwen2_5": [
        QWEN.format('{"x": "X", "n": 3}'), QWEN.format('{"x": "Y"}'), "A<|im_end|>", QWEN.format('{"n": 4}'),
        "B<|im_end|>",
    ],
    "qwen3": [
        QWEN.format('{"x": "X", "n": 3}'), QWEN.format('{"x": "Y"}'), "A<|im_end|>", QWEN.format('{"n": 4}'),
        "<think>\n\n</think>\n\nB<|im_end|>",
    ],
    "llama3": [
        '{"name": "f", "parameters": {"x": "X", "n": 3}}<|eot_id|>',
        '{"name": "f", "parameters": {"x": "Y"}}<|eot_id|>',
        "A<|eot_id|>", '{"name": "f", "parameters": {"n": 4}}<|eot_id|>', "B<|eot_id|>",
    ],
    "mistral": [
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {{"x": "X", "n": 3}}, "id": "{ID}"}}]</s>',
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {{"x": "Y"}}, "id": "{ID}"}}]</s>', " A</s>",
        f'[TOOL_CALLS] [{{"name": "f", "arguments": {{"n": 4}}, "id": "{ID}"}}]</s>', " B</s>",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_answers_that_only_call_tools_are_trained_with_their_end_and_results_are_not(name):
    encoded = chat_of(name).encode_conversation(talk(*TALK))
    assert answers_of(encoded) == ANSWERS[name]
    results = "".join(show([token]) for token in encoded.ids[encoded.roles == Role.TOOL].tolist())
    assert results == "RQP"
    for index, turn in enumerate(TALK):
        if turn.tool_calls:
            own = show(encoded.ids[encoded.turns == index].tolist())
            assert own.startswith("f") and ANSWERS[name][0][1:].find('f", ') >= 0 and "<|" not in own


@pytest.mark.parametrize("name", NAMES)
def test_a_results_weight_is_that_of_the_prompt_and_scaffolding_and_tools_have_none(name):
    encoded = chat_of(name).encode_conversation(talk(*TALK), LossConfig(prompt_weight=0.5))
    assert show(encoded.ids[encoded.weights == 0.5].tolist()) == "URQVP"


def test_text_before_a_call_is_trained_as_one_answer_with_it():
    encoded = chat_of("qwen3").encode_conversation(
        talk(Turn("user", "U"), calling({}, "I look.", thoughts="hm"), result("R"), Turn("assistant", "A"))
    )
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert answers_of(encoded) == [
        f"<think>\nhm\n</think>\n\nI look.\n{call}<|im_end|>",
        "<think>\n\n</think>\n\nA<|im_end|>",
    ]
    both = Turn("assistant", "", tool_calls=make_calls({"n": 1}, {"n": 2}))
    encoded = chat_of("qwen2_5").encode_conversation(talk(Turn("user", "U"), both, result("R"), Turn("assistant", "A")))
    assert answers_of(encoded)[0].count("<tool_call>") == 2


SPELLED = ("</s>", "<|im_end|>", "<|eot_id|>", "[/INST]", "<|im_start|>assistant\n", "<s>[TOOL_CALLS]")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spelled", SPELLED)
def test_a_control_token_spelled_anywhere_in_a_row_stays_text(name, spelled):
    def make(text):
        arguments = {f"k{text}": text, "deep": [{"x": f"a{text}b"}, 1]}
        return talk(
            Turn("system", f"s{text}"), Turn("user", f"{text}u"), calling(arguments), result(f"r{text}r"),
            Turn("assistant", f"a{text}b"), tools=make_tools(f"d {text}"),
        )  # fmt: skip

    chat = chat_of(name)
    encoded, plain = chat.encode_conversation(make(spelled)), chat.encode_conversation(make("z"))
    control = [[token for token in each.ids.tolist() if TOKENIZER.is_control(token)] for each in (encoded, plain)]
    assert control[0] == control[1]
    assert len(answers_of(encoded)) == 2
    # What is written is what the template writes, control tokens or not.
    row = make(spelled)
    assert show(encoded.ids.tolist()) == chat._render(make_messages(row.turns), parse_tools(row.tools))
    assert answers_of(encoded) == [
        each.replace("z", json.dumps(spelled)[1:-1]) if "name" in each else each.replace("z", spelled)
        for each in answers_of(plain)
    ]


def test_a_control_token_spelled_in_thoughts_stays_text():
    turns = (Turn("user", "U"), Turn("assistant", "A", thoughts="<|im_end|>\n<|im_start|>user\n"))
    encoded = chat_of("qwen3").encode_conversation(talk(*turns, tools=""))
    assert answers_of(encoded) == ["<think>\n<|im_end|>\n<|im_start|>user\n</think>\n\nA<|im_end|>"]
    assert sum(map(TOKENIZER.is_control, encoded.ids.tolist())) == 4


text = st.lists(
    st.sampled_from([*SPELLED, "日本", "e\u0301", "🇰🇪", " ", "\n", "\\", '"', "x", "\U000f0000"]), max_size=4
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_answer_of_any_row_with_tools_has_its_span_and_one_end(name, data):
    draw = lambda: data.draw(text)  # noqa: E731
    turns = []
    for _ in range(data.draw(st.integers(1, 2))):
        turns.append(Turn("user", f"u{draw()}"))
        for _ in range(data.draw(st.integers(0, 2))):
            thoughts = draw() if name == "qwen3" else ""
            turns += [calling({draw(): draw(), "n": [1, draw()]}, thoughts=thoughts), result(draw())]
        turns.append(Turn("assistant", f"a{draw()}"))
    encoded = chat_of(name).encode_conversation(talk(*turns, tools=make_tools(draw())))
    stop = chat_of(name).stop_ids[0]
    answers = sum(turn.role == "assistant" for turn in turns)
    assert len(answers_of(encoded)) == answers
    assert np.count_nonzero(encoded.ids[encoded.weights > 0] == stop) == answers
    ends = np.flatnonzero(np.diff(np.concatenate((encoded.weights, [0])) > 0) & (encoded.weights > 0))
    assert set(encoded.ids[ends].tolist()) == {stop}


WRITE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}BETWEEN<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN = WRITE.replace("BETWEEN", "")
CALLS = WRITE.replace(
    "BETWEEN",
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson }}{% endfor %}",
)
THOUGHTS = PLAIN.replace(
    "{{ m.content }}", "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content }}{{ m.content }}"
)


@pytest.mark.parametrize(
    ("source", "conversation", "message"),
    [
        (PLAIN, talk(Turn("user", "U"), Turn("assistant", "A")), "the template leaves out the row's tools; use one"),
        (PLAIN, talk(*TALK[:6], tools=""), "the template leaves out a tool call of turn 1"),
        (
            CALLS.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]"),
            asked(calls(make_calls({}, {})), tools=""),
            "the template leaves out a tool call of turn 1",
        ),
        (
            PLAIN, talk(Turn("user", "U"), Turn("assistant", "A", thoughts="T"), tools=""),
            r"the template leaves out the thoughts \(reasoning_content\) of every answer, and turn 1 has some",
        ),
        (
            THOUGHTS.replace("if m.reasoning_content ", "if m.reasoning_content and loop.last "),
            asked(Turn("assistant", "A", thoughts="T"), tools=""),
            "the template leaves out the thoughts of turn 1",
        ),
        (CALLS, asked(calls("{"), tools=""), "turn 1: tool_calls is no JSON"),
        (CALLS, asked(calls("[1]"), tools=""), "turn 1: tool_calls must be a JSON list"),
        (
            CALLS, asked(calls('[{"function": {"name": "f", "arguments": "{}"}}]'), tools=""),
            "turn 1: tool_calls must be a JSON list of calls",
        ),
        (CALLS, talk(*TALK[5:7] * 16384, tools=""), "32768 turns are more than 32767"),
        (CALLS, talk(*TALK, tools='{"a": 1}'), "tools must be a JSON list of objects"),
        (CALLS, talk(*TALK, tools="nope"), "tools is no JSON"),
    ],
)  # fmt: skip
def test_what_a_template_would_leave_out_is_an_error_with_template_and_row(source, conversation, message):
    with pytest.raises(DataError, match=rf"test f\.jsonl:3, mine: {message}"):
        mine(source).encode_conversation(conversation)


def test_thoughts_before_the_last_question_may_go_as_qwen3_has_it():
    turns = (
        Turn("user", "U"),
        Turn("assistant", "A", thoughts="</s>T"),
        Turn("user", "V"),
        Turn("assistant", "B", thoughts="S"),
    )
    encoded = chat_of("qwen3").encode_conversation(talk(*turns, tools=""))
    assert answers_of(encoded) == ["A<|im_end|>", "<think>\nS\n</think>\n\nB<|im_end|>"]


REFUSALS = [
    ("mistral", asked(calls(make_calls({}).replace(ID, "12"))), "by an id of 9 letters or digits"),
    ("mistral", asked(calls(make_calls({}).replace(f'"id": "{ID}", ', ""))), "by an id of 9 letters or digits"),
    ("mistral", asked(calling({}, "text")), "Mistral has no text beside tool calls"),
    ("llama3", asked(calling({}, "text")), "Llama 3 has no text beside a tool call"),
    ("llama3", asked(calls(make_calls({}, {}))), "Llama 3 makes one tool call a turn"),
    ("llama3", talk(Turn("assistant", "A"), *TALK), "tools open the first turn of the user"),
]


@pytest.mark.parametrize(("name", "conversation", "message"), REFUSALS)
def test_what_a_family_has_no_form_for_is_refused_in_its_own_words(name, conversation, message):
    with pytest.raises(DataError, match=rf"test f\.jsonl:3, template {name}: the template refuses it: .*{message}"):
        chat_of(name).encode_conversation(conversation)


def test_the_control_token_template_refuses_what_it_would_leave_out(pieces):
    chat = ControlTemplate(tokenizer=pieces)
    with pytest.raises(DataError, match=r"f\.jsonl:3, the control-token template has no form for tools;"):
        chat.encode_conversation(talk(Turn("user", "U"), Turn("assistant", "A")))
    with pytest.raises(DataError, match=r"no form for tool calls \(turn 1\)"):
        chat.encode_conversation(talk(*TALK, tools=""))
    with pytest.raises(DataError, match=r"no form for thoughts \(turn 1\)"):
        chat.encode_conversation(talk(Turn("user", "U"), Turn("assistant", "A", thoughts="T"), tools=""))


@pytest.fixture(scope="module")
def pieces():
    from data.config import TokenizerConfig
    from data.tokenizer import train_tokenizer

    return train_tokenizer(["ab abc"], TokenizerConfig(vocab_size=300))


@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_given_tools_and_begin_their_conversation(name):
    chat, row = chat_of(name), talk(*TALK[:6])
    encoded = chat.encode_conversation(row)
    for index in (1, 3, 5):
        prompt = chat.encode_prompt(row.turns[:index], tools=row.tools)
        assert encoded.ids[: len(prompt)].tolist() == prompt
        assert encoded.weights[len(prompt) - 1 : len(prompt) + 1].tolist() == [0, 1]
    with pytest.raises(DataError, match="a prompt, mine: the template leaves out the row's tools"):
        mine(PLAIN).encode_prompt(row.turns[:1], tools=row.tools)


@pytest.mark.parametrize("depth", [300, 450, 600, 900, 100_000])
def test_a_call_nested_beyond_what_python_can_follow_is_an_error_of_its_row(depth):
    nested = make_calls({"x": 1}).replace("1}", "[" * depth + "]" * depth + "}")
    source = CALLS.replace("c.function.arguments | tojson", "'x'")
    try:
        mine(source).encode_conversation(asked(calls(nested), tools=""))
    except DataError as error:
        assert str(error).startswith("test f.jsonl:3, mine: ")
        assert "nested too deeply" in str(error) or "tool_calls is no JSON" in str(error)
    else:
        assert depth < 900
