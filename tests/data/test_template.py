"""Ids are those of the whole rendering, and what is trained is the answer and its end of turn: nothing else, ever."""

import functools

import numpy as np
import pytest
from fake_tokenizer import FakeTokenizer
from hub_folders import make_golden_folder, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import Role
from data.chat import list_templates, load_chat
from data.rendering import make_messages
from data.schema import Conversation, DataError, Turn
from data.template import JinjaTemplate
from data.tokenizer import load_tokenizer

CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
)  # fmt: skip
TOKENIZER = FakeTokenizer(CONTROL, bos="<s>", eos="</s>", merges=("\n\n", " a", "th"))
HEAD, SYSTEM, USER, ASSISTANT, TOOL = Role.HEADER, Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL
UNMERGED = FakeTokenizer(CONTROL, bos="<s>", eos="</s>")
"""No id of it holds characters of both header and answer."""
TAKES_TOOLS = ("alpaca", "chatml", "llama3", "plain", "qwen2_5", "qwen3", "zephyr")

SPELLINGS = [*CONTROL, "<pad>", "<|im_end|", "</think>", "{{ bos_token }}", "{% endfor %}"]
TEXTS = [
    "Mji mkuu ni upi?", "  spaces at both ends  ", "\n\nlines\n \n", "\t", "مرحبا بالعالم", "שלום", "e\u0301a\u0323",
    "ภาษาไทย", "日本語です。", "हिन्दी", "👩🏽‍💻 🇰🇪", "a\u200bb\ufeff", "\u2028\u00a0x\u3000", "\U000f0000",
]  # fmt: skip
content = st.lists(
    st.sampled_from([*TEXTS, *SPELLINGS, " ", "\n"]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    min_size=1, max_size=4,
).map("".join).filter(str.strip)  # fmt: skip


def talk(*turns):
    return Conversation(turns=tuple(Turn(*turn) for turn in turns), language="en", source="test", id="f.jsonl:3")


def chat_of(source, tokenizer=TOKENIZER, **fields):
    return JinjaTemplate(tokenizer=tokenizer, jinja=source, name="mine", **fields)


def spell(*pieces):
    """Ids of pieces: a control token where a piece is one, else text."""
    return [
        token
        for piece in pieces
        for token in ([TOKENIZER.control_ids[piece]] if piece in CONTROL else TOKENIZER.encode(piece))
    ]


def show(ids):
    spelled = {token: name for name, token in TOKENIZER.control_ids.items()}
    return "".join(spelled.get(token) or TOKENIZER.decode([token]) for token in ids)


def trained_of(chat, *turns):
    encoded = chat.encode_conversation(talk(*turns))
    return show(encoded.ids[encoded.weights > 0].tolist())


SHORT = (("system", "S."), ("user", " U\n"), ("assistant", "A1"), ("user", "V"), ("assistant", "A2 "))
TABLES = {
    "chatml": [
        ("<|im_start|>", HEAD, 0, -1), ("system\n", HEAD, 0, -1), ("S.", SYSTEM, 0, 0), ("<|im_end|>", HEAD, 0, -1),
        ("\n", HEAD, 0, -1), ("<|im_start|>", HEAD, 0, -1), ("user\n", HEAD, 0, -1), (" U\n", USER, 0, 1),
        ("<|im_end|>", HEAD, 0, -1), ("\n", HEAD, 0, -1), ("<|im_start|>", HEAD, 0, -1), ("assistant\n", HEAD, 0, -1),
        ("A1", ASSISTANT, 1, 2), ("<|im_end|>", ASSISTANT, 1, -1), ("\n", HEAD, 0, -1), ("<|im_start|>", HEAD, 0, -1),
        ("user\n", HEAD, 0, -1), ("V", USER, 0, 3), ("<|im_end|>", HEAD, 0, -1), ("\n", HEAD, 0, -1),
        ("<|im_start|>", HEAD, 0, -1), ("assistant\n", HEAD, 0, -1), ("A2 ", ASSISTANT, 1, 4),
        ("<|im_end|>", ASSISTANT, 1, -1), ("\n", HEAD, 0, -1),
    ],
    "llama3": [
        ("<s>", HEAD, 0, -1), ("<|start_header_id|>", HEAD, 0, -1), ("system", HEAD, 0, -1),
        ("<|end_header_id|>", HEAD, 0, -1), ("\n\n", HEAD, 0, -1), ("S.", SYSTEM, 0, 0), ("<|eot_id|>", HEAD, 0, -1),
        ("<|start_header_id|>", HEAD, 0, -1), ("user", HEAD, 0, -1), ("<|end_header_id|>", HEAD, 0, -1),
        ("\n\n", HEAD, 0, -1), ("U", USER, 0, 1), ("<|eot_id|>", HEAD, 0, -1), ("<|start_header_id|>", HEAD, 0, -1),
        ("assistant", HEAD, 0, -1), ("<|end_header_id|>", HEAD, 0, -1), ("\n\n", HEAD, 0, -1), ("A1", ASSISTANT, 1, 2),
        ("<|eot_id|>", ASSISTANT, 1, -1), ("<|start_header_id|>", HEAD, 0, -1), ("user", HEAD, 0, -1),
        ("<|end_header_id|>", HEAD, 0, -1), ("\n\n", HEAD, 0, -1), ("V", USER, 0, 3), ("<|eot_id|>", HEAD, 0, -1),
        ("<|start_header_id|>", HEAD, 0, -1), ("assistant", HEAD, 0, -1), ("<|end_header_id|>", HEAD, 0, -1),
        ("\n\n", HEAD, 0, -1), ("A2", ASSISTANT, 1, 4), ("<|eot_id|>", ASSISTANT, 1, -1),
    ],
    "gemma": [
        ("<s>", HEAD, 0, -1), ("<start_of_turn>", HEAD, 0, -1), ("user\n", HEAD, 0, -1), ("S.", SYSTEM, 0, 0),
        ("\n\n", HEAD, 0, -1), ("U", USER, 0, 1), ("<end_of_turn>", HEAD, 0, -1), ("\n", HEAD, 0, -1),
        ("<start_of_turn>", HEAD, 0, -1), ("model\n", HEAD, 0, -1), ("A1", ASSISTANT, 1, 2),
        ("<end_of_turn>", ASSISTANT, 1, -1), ("\n", HEAD, 0, -1), ("<start_of_turn>", HEAD, 0, -1),
        ("user\n", HEAD, 0, -1), ("V", USER, 0, 3), ("<end_of_turn>", HEAD, 0, -1), ("\n", HEAD, 0, -1),
        ("<start_of_turn>", HEAD, 0, -1), ("model\n", HEAD, 0, -1), ("A2", ASSISTANT, 1, 4),
        ("<end_of_turn>", ASSISTANT, 1, -1), ("\n", HEAD, 0, -1),
    ],
    # The space before an answer is not in the prompt, so the model has to say it.
    "mistral": [
        ("<s>", HEAD, 0, -1), ("[INST]", HEAD, 0, -1), (" ", HEAD, 0, -1), ("S.", SYSTEM, 0, 0), ("\n\n", HEAD, 0, -1),
        (" ", USER, 0, -1), ("U", USER, 0, 1), ("\n", USER, 0, -1), ("[/INST]", HEAD, 0, -1), (" ", ASSISTANT, 1, -1),
        ("A1", ASSISTANT, 1, 2), ("</s>", ASSISTANT, 1, -1), ("[INST]", HEAD, 0, -1), (" ", HEAD, 0, -1),
        ("V", USER, 0, 3), ("[/INST]", HEAD, 0, -1), (" ", ASSISTANT, 1, -1), ("A2", ASSISTANT, 1, 4),
        ("</s>", ASSISTANT, 1, -1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_literal_table_of_ids_roles_weights_and_turns(name):
    encoded = load_chat(TOKENIZER, name).encode_conversation(talk(*SHORT))
    rows = [(token, *facts) for piece, *facts in TABLES[name] for token in spell(piece)]
    assert encoded.ids.tolist() == [row[0] for row in rows]
    assert encoded.weights.tolist() == [row[2] for row in rows]
    if name != "mistral":  # which trims answers only: space around the user's content then counts as scaffolding
        assert encoded.roles.tolist() == [row[1] for row in rows]
    assert encoded.turns.tolist() == [row[3] for row in rows]
    assert [array.dtype for array in encoded] == [np.int32, np.int8, np.float32, np.int16]


RENDERED = {
    "alpaca": (
        "<s>S.\n\n### Instruction:\n U\n\n\n### Response:\n[A1</s>]\n\n"
        "### Instruction:\nV\n\n### Response:\n[A2 </s>]\n\n"
    ),
    "plain": "<s>System:\nS.\n\nUser:\n U\n\n\nAssistant:\n[A1</s>]\n\nUser:\nV\n\nAssistant:\n[A2 </s>]\n\n",
    "zephyr": (
        "<|system|>\nS.</s>\n<|user|>\n U\n</s>\n<|assistant|>\n[A1</s>]\n<|user|>\nV</s>\n<|assistant|>\n[A2 </s>]\n"
    ),
    "command_r": (
        "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S.<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>U<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[A1<|END_OF_TURN_TOKEN|>]"
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>V<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>[A2<|END_OF_TURN_TOKEN|>]"
    ),
    "qwen2_5": (
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\n U\n<|im_end|>\n<|im_start|>assistant\n[A1<|im_end|>]\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n[A2 <|im_end|>]\n"
    ),
    # Only the last answer has a think block; the model has to say it, since the prompt does not.
    "qwen3": (
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\n U\n<|im_end|>\n<|im_start|>assistant\n[A1<|im_end|>]\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n[<think>\n\n</think>\n\nA2 <|im_end|>]\n"
    ),
}


def mark_trained(encoded):
    """The rendering with brackets around what is trained."""
    text = ""
    for index, (token, weight) in enumerate(zip(encoded.ids.tolist(), encoded.weights.tolist(), strict=True)):
        before = float(encoded.weights[index - 1]) if index else 0
        text += "[" * (weight > before) + "]" * (weight < before) + show([token])
    return text + "]" * bool(encoded.weights[-1])


@pytest.mark.parametrize("name", RENDERED)
def test_literal_rendering_with_what_is_trained(name):
    assert mark_trained(load_chat(TOKENIZER, name).encode_conversation(talk(*SHORT))) == RENDERED[name]


@functools.cache
def shipped(name, tokenizer=TOKENIZER):
    return load_chat(tokenizer, name)


def draw_turns(data, name):
    """User and assistant in turn, with a system turn or not, and tool turns where the template has them."""
    turns = [Turn("system", data.draw(content))] if data.draw(st.booleans()) else []
    for _ in range(data.draw(st.integers(1, 3))):
        turns.append(Turn("user", data.draw(content)))
        if name in TAKES_TOOLS and data.draw(st.booleans()):
            turns += [Turn("assistant", data.draw(content)), *[Turn("tool", data.draw(content))] * 2]
        turns.append(Turn("assistant", data.draw(content)))
    return tuple(turns)


def is_trimmed(name):
    return name in ("llama3", "gemma", "mistral", "command_r")


@pytest.mark.parametrize("name", sorted({*TABLES, *RENDERED} - {"qwen3"}))
@settings(max_examples=25)
@given(data=st.data())
def test_every_answer_and_its_end_of_turn_are_trained_whatever_the_contents_say(name, data):
    turns = draw_turns(data, name)
    chat = shipped(name, UNMERGED)
    encoded = chat.encode_conversation(Conversation(turns=turns, language="en", source="test"))
    lead = " " if name == "mistral" else ""
    answers = [turn.content.strip() if is_trimmed(name) else turn.content for turn in turns if turn.role == "assistant"]
    trained = encoded.ids[encoded.weights > 0]
    end = chat.stop_ids[0]
    assert show(trained.tolist()) == "".join(f"{lead}{answer}{show([end])}" for answer in answers)
    assert np.count_nonzero(trained == end) == len(answers) == np.count_nonzero(np.isin(trained, chat.stop_ids))


@pytest.mark.parametrize("name", sorted({*TABLES, *RENDERED} - {"qwen3"}))
@settings(max_examples=25)
@given(data=st.data())
def test_a_spelled_control_token_never_becomes_one(name, data):
    turns = draw_turns(data, name)
    chat = shipped(name)

    def controls(turns):
        ids = chat.encode_conversation(Conversation(turns=turns, language="en", source="test")).ids
        return [token for token in ids.tolist() if TOKENIZER.is_control(token)]

    assert controls(turns) == controls(tuple(Turn(turn.role, "x") for turn in turns))


@pytest.mark.parametrize("name", sorted({*TABLES, *RENDERED}))
@settings(max_examples=25)
@given(data=st.data())
def test_rows_that_spell_no_control_token_have_the_ids_of_the_whole_rendering(name, data):
    turns = tuple(Turn(turn.role, turn.content.replace("<", "(").replace("[", "(")) for turn in draw_turns(data, name))
    chat = shipped(name)
    encoded = chat.encode_conversation(Conversation(turns=turns, language="en", source="test"))
    assert encoded.ids.tolist() == TOKENIZER.encode_rendered(chat._render(make_messages(turns)))
    prompt = chat.encode_prompt(turns[:-1])
    assert prompt == TOKENIZER.encode_rendered(chat._render(make_messages(turns[:-1]), is_prompt=True))


@pytest.mark.parametrize("name", list_templates())
@pytest.mark.parametrize("answer", ["A", "日本語", "שלום", " a", "<|im_end|>"])
def test_a_prompt_is_how_its_conversation_begins(name, answer):
    chat = shipped(name)
    turns = (Turn("user", "th </s>"), Turn("assistant", answer))
    encoded = chat.encode_conversation(Conversation(turns=turns, language="en", source="test"))
    prompt = chat.encode_prompt(turns[:1])
    assert encoded.ids[: len(prompt)].tolist() == prompt
    assert encoded.weights.tolist().index(1) == len(prompt)


def test_thoughts_are_trained_where_they_are_kept_and_dropped_before_the_last_question():
    chat = load_chat(TOKENIZER, "qwen3")
    thinking = "<think>\nhm\n</think>\n\nA"
    rows = (("user", "U"), ("assistant", thinking), ("user", "V"), ("assistant", thinking))
    encoded = chat.encode_conversation(talk(*rows))
    assert mark_trained(encoded) == (
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n[A<|im_end|>]\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n[<think>\nhm\n</think>\n\nA<|im_end|>]\n"
    )
    tools = (("user", "U"), ("assistant", thinking), ("tool", "1"), ("tool", "2"), ("assistant", "A"))
    assert mark_trained(chat.encode_conversation(talk(*tools))) == (
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n[<think>\nhm\n</think>\n\nA<|im_end|>]\n"
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n[<think>\n\n</think>\n\nA<|im_end|>]\n"
    )
    with pytest.raises(DataError, match=r"turn 1 spells the control token '<\|im_end\|>', and the template rewrites"):
        chat.encode_conversation(talk(("user", "U"), ("assistant", f"<|im_end|>{thinking}")))


def test_an_id_across_the_boundary_belongs_to_the_answer():
    chat = chat_of(
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    assert TOKENIZER.encode(" a") == [501]
    encoded = chat.encode_conversation(talk(("user", "U"), ("assistant", "ab")))
    assert encoded.ids[encoded.weights > 0].tolist() == [501, *spell("b", "<|im_end|>")]
    assert chat.encode_prompt([Turn("user", "U")])[-1:] == spell(" ")


def test_a_control_token_that_swallows_space_is_neither_trained_nor_taken_for_content():
    class Swallowing(FakeTokenizer):
        def encode_rendered_offsets(self, text):
            ids, spans = [], []
            for token, span in zip(*super().encode_rendered_offsets(text), strict=True):
                if token == self.encode("\n")[0] and ids and self.is_control(ids[-1]):
                    spans[-1] = (spans[-1][0], span[1])
                else:
                    ids.append(token)
                    spans.append(span)
            return ids, spans

    chat = chat_of(
        "{% for m in messages %}{{ '<|im_start|>' if m.role == 'assistant' else '<s>' }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>\n{% endif %}",
        Swallowing(CONTROL, bos="<s>", eos="</s>"),
    )
    encoded = chat.encode_conversation(talk(("user", "\nU"), ("assistant", "\nA")))
    assert encoded.ids.tolist() == spell("<s>", "U", "<|im_end|>", "<|im_start|>", "A", "<|im_end|>")
    assert encoded.weights.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_line_end_whose_offsets_are_trimmed_away_stays_in_the_header():
    class Trimming(FakeTokenizer):
        def encode_rendered_offsets(self, text):
            ids, spans = super().encode_rendered_offsets(text)
            return ids, [(end, end) if text[start:end].isspace() else (start, end) for start, end in spans]

    chat = load_chat(Trimming(CONTROL), "chatml")
    encoded = chat.encode_conversation(talk(("user", " U "), ("assistant", " A\n"), ("user", "V"), ("assistant", "B")))
    assert mark_trained(encoded) == (
        "<|im_start|>user\n U <|im_end|>\n<|im_start|>assistant\n[ A\n<|im_end|>]\n"
        "<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n"
    )


def test_a_template_that_moves_the_system_text_to_the_last_question_still_gives_spans():
    chat = chat_of(
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s, ms = messages[0].content, messages[1:] %}"
        "{% else %}{% set ms = messages %}{% endif %}{% for m in ms %}{% if m.role == 'user' %}[INST]"
        "{% if ms[loop.index0:] | selectattr('role', 'equalto', 'user') | list | length == 1 and s is defined %}"
        "{{ s }} {% endif %}{{ m.content }}[/INST]{% else %} {{ m.content | trim }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
    assert mark_trained(chat.encode_conversation(talk(*SHORT))) == (
        "<s>[INST] U\n[/INST][ A1</s>][INST]S. V[/INST][ A2</s>]"
    )


def test_the_end_of_an_answer_is_never_the_next_header():
    chat = chat_of(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}</s>{% endif %}"
    )
    rows = (("user", "U"), ("assistant", "A"), ("user", "V"), ("assistant", "B"))
    assert mark_trained(chat.encode_conversation(talk(*rows))) == (
        "<|im_start|>user\nU\n<|im_start|>assistant\n[A]\n<|im_start|>user\nV\n<|im_start|>assistant\n[B\n</s>]"
    )


def test_a_generation_tag_is_its_body_and_does_not_move_the_span():
    source = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{% set x = 1 %}<|im_start|>assistant\n"
        "{{ m.content }}<|im_end|>\n{% endgeneration %}{{ x }}{% else %}<|im_start|>user\n{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    assert trained_of(chat_of(source), ("user", "U"), ("assistant", "A")) == "A<|im_end|>"


def test_what_templates_of_the_hub_use_is_there():
    chat = chat_of(
        "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}"
        "{%- if m.role == 'tool' -%}{%- continue -%}{%- endif -%}"
        "{%- set ns.n = ns.n + 1 -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endfor -%}"
        "{%- if add_generation_prompt and tools is none -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
    )
    assert trained_of(chat, ("user", "U"), ("assistant", "A")) == "A<|im_end|>"
    json = chat_of(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ {'c': m.content, 'a': [1]} | tojson if m.role == 'user' else m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoded = json.encode_conversation(talk(("user", "é<&'日"), ("assistant", "A")))
    assert show(encoded.ids.tolist()).startswith('<|im_start|>user\n{"c": "é<&\'日", "a": [1]}<|im_end|>')


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", r"mine is no Jinja template: .* \(line 1\)"),
        ("{{ raise_exception('never') }}", "mine: the template refuses it: never; set tokenizer.template to another"),
        ("{{ messages[9].content.x.y }}", "mine: the template refuses it: "),
        ("{{ messages[0].__class__.__mro__ }}</s>", "mine: the template refuses it: "),
        ("{{ namespace(_x=1) }}", "cannot hold '_x'"),
        ("{{ 1 / 0 }}", "mine: the template fails on it: ZeroDivisionError"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", r"closes an answer with '\\n', which does not begin"),
        ("<s>", "the template leaves out turn 0, the user's"),
        (
            "{{ messages[0].content }}{% for m in messages[1:] %}{{ m.content + m.content }}{% endfor %}</s>",
            "an answer does not stand once",
        ),
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
            r"it ignores add_generation_prompt, so prompts lack '<\|im_start\|>assistant\\n'",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused_when_it_is_loaded(source, message):
    with pytest.raises(DataError, match=message):
        chat_of(source)


WRITE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.mark.parametrize(
    ("source", "turns", "message"),
    [
        (WRITE, [("user", "a")], "f.jsonl:3 has no assistant turn"),
        (WRITE, [("user", "a"), ("assistant", " \n")], "test f.jsonl:3, mine: turn 1: the assistant turn is empty"),
        (WRITE, [("human", "a"), ("assistant", "b")], "turn 0: unknown role 'human'; use one of system, user"),
        ("{{ bos_token }}{{ bos_token }}" + WRITE, [("user", "a"), ("assistant", "b")], "two beginning-of-text tokens"),
        (
            "{{ raise_exception('no system') if messages[0].role == 'system' }}" + WRITE,
            [("system", "s"), ("user", "a"), ("assistant", "b")],
            "test f.jsonl:3, mine: the template refuses it: no system",
        ),
        (
            "{{ 'x' if messages[-1].content == 'b' }}" + WRITE,
            [("user", "a"), ("assistant", "b")],
            "changes its scaffolding with the contents",
        ),
        (
            WRITE.replace("messages %}", "messages if m.role != 'system' %}"),
            [("system", "s"), ("user", "a"), ("assistant", "b")],
            "the template leaves out turn 0, the system's .take it out of the row",
        ),
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
            "{{ '<|im_end|>' if messages | length == 2 }}\n{% endfor %}",
            [("system", "s"), ("user", "a"), ("assistant", "b")],
            r"no end of turn would be trained, .* in '<\|im_start\|>system\\ns\\n",
        ),
    ],
)
def test_a_row_that_would_train_nothing_or_nonsense_is_refused_and_shown(source, turns, message):
    chat = chat_of(source + PROMPT)
    with pytest.raises(DataError, match=message):
        chat.encode_conversation(talk(*turns))


def test_stop_ids_are_the_end_of_turn_the_end_of_text_and_those_given():
    chat = load_chat(TOKENIZER, "chatml", extra_stop_ids=(6, 3))
    assert chat.stop_ids == (TOKENIZER.control_ids["<|im_end|>"], TOKENIZER.control_ids["</s>"], 6)
    assert load_chat(TOKENIZER, "mistral").stop_ids == (TOKENIZER.control_ids["</s>"],)
    several = chat_of(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}[/INST]<|im_end|>{% endfor %}" + PROMPT
    )
    assert several.stop_ids[0] == TOKENIZER.control_ids["<|im_end|>"]
    assert trained_of(several, ("user", "U"), ("assistant", "A")) == "A[/INST]<|im_end|>"


def test_padding_that_ends_turns_is_refused():
    tokenizer = FakeTokenizer(["</s>"], eos="</s>")
    tokenizer.pad_id = tokenizer.eos_id
    with pytest.raises(DataError, match="template plain: the pad id 0 is also a stop id"):
        load_chat(tokenizer, "plain")


def test_a_prompt_that_is_not_how_conversations_begin_is_told():
    source = WRITE + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    (notice,) = chat_of(source).notices
    assert r"the prompt '<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n<think>\n' is not how" in notice
    assert mark_trained(chat_of(source).encode_conversation(talk(("user", "U"), ("assistant", "A")))) == (
        "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n[A<|im_end|>]\n"
    )


HEADER = [265, 84, 82, 68, 81, 198, 260, 220, 262, 117, 262, 123, 198, 266, 198]
HEADER += [265, 64, 82, 82, 72, 82, 83, 64, 77, 83, 198]
THOUGHT = [267, 198, 256, 198, 268, 263, 259, 220, 172, 253, 229, 108, 172, 253, 229, 103, 127, 102, 266]
SPELLED = [259, 27, 91, 72, 76, 62, 68, 77, 67, 91, 29, 220, 172, 253, 229, 108, 172, 253, 229, 103, 127, 102, 266]
"""`<|im_end|>` in the middle of it is eleven ids; the last one is 266."""


@pytest.mark.parametrize(
    ("name", "answer", "trained"),
    [
        ("qwen3", "<think>\nhe\n</think>\n\nhello 🇰🇪e\u0301", THOUGHT),
        ("chatml", "hello<|im_end|> 🇰🇪e\u0301", SPELLED),
    ],
)
def test_golden_ids_over_a_hugging_face_tokenizer(name, answer, trained, tmp_path):
    write_folder(tmp_path, make_golden_folder("qwen3"))
    chat = load_chat(load_tokenizer(tmp_path), name)
    encoded = chat.encode_conversation(talk(("user", " hello हि\n"), ("assistant", answer)))
    assert encoded.ids.tolist() == [*HEADER, *trained, 198]
    assert encoded.weights.tolist() == [0] * len(HEADER) + [1] * len(trained) + [0]
    assert chat.encode_prompt([Turn("user", " hello हि\n")]) == HEADER
    assert chat.stop_ids == (266,)
