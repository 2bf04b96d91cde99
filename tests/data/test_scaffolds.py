"""A scaffold learnt from one row says of another what marking it would, and nothing where it does not fit."""

import functools

import pytest
from fake_tokenizer import FakeTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import data.template
from data.chat import list_templates, load_chat
from data.schema import Conversation, DataError, Turn
from data.template import JinjaTemplate

CONTROL = (
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
)  # fmt: skip
TOKENIZER = FakeTokenizer(CONTROL, bos="<s>", eos="</s>")
PIECES = ["a", "b c", " ", "\n", "\n\n", "<|im_end|>", "</s>", "user", "assistant", "<think>", "</think>", "\U000f0000"]
content = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join).filter(str.strip)


@functools.cache
def warm_chat(name):
    return load_chat(TOKENIZER, name)


def talk(contents, *, system=False):
    roles = (["system"] if system else []) + ["user", "assistant"] * len(contents)
    turns = tuple(Turn(role, text) for role, text in zip(roles, contents, strict=False))
    return Conversation(turns=turns, language="en", source="test", id="f.jsonl:3")


def outcome(chat, conversation):
    try:
        return [array.tolist() for array in chat.encode_conversation(conversation)]
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("name", list_templates())
@given(contents=st.lists(content, min_size=2, max_size=4).filter(lambda each: len(each) % 2 == 0))
@settings(max_examples=40, deadline=None)
def test_rows_seen_after_others_are_encoded_as_if_seen_first(name, contents):
    assert outcome(warm_chat(name), talk(contents)) == outcome(load_chat(TOKENIZER, name), talk(contents))


def test_a_second_row_of_the_same_roles_is_rendered_once(monkeypatch):
    chat, rendered = load_chat(TOKENIZER, "chatml"), []
    render = data.template.render_messages
    monkeypatch.setattr(data.template, "render_messages", lambda *a, **k: rendered.append(1) or render(*a, **k))
    chat.encode_conversation(talk(["Ni nini?", "Mti."]))
    rendered.clear()
    chat.encode_conversation(talk(["Ni nani?", "Asha."]))
    assert len(rendered) == 1
    chat.encode_conversation(talk(["s", "Ni nani?", "Asha."], system=True))
    assert len(rendered) == 3


def test_a_template_that_writes_one_row_otherwise_is_not_taken_at_its_first_row():
    chat = JinjaTemplate(
        tokenizer=TOKENIZER,
        name="mine",
        jinja="{% for m in messages %}<|im_start|>{% if 'x' in m.content %}!!{% endif %}{{ m.content | trim }}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}",
    )
    chat.encode_conversation(talk(["a", "b"]))
    encoded = chat.encode_conversation(talk([" x ", "  x y"]))
    assert TOKENIZER.decode(encoded.ids) == "!!x!!x y"
    assert TOKENIZER.decode(encoded.ids[encoded.turns == 1]) == "x y"


def test_a_text_that_a_template_writes_twice_is_never_a_scaffold():
    chat = JinjaTemplate(
        tokenizer=TOKENIZER,
        name="mine",
        jinja="{% for m in messages %}<|im_start|>{{ m.content }}{% if m.role == 'user' %}{{ m.content }}{% endif %}"
        "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}",
    )
    for contents in (["a", "b"], ["c", "d"]):
        encoded = chat.encode_conversation(talk(contents))
        assert TOKENIZER.decode(encoded.ids[encoded.turns == 1]) == contents[1]
        assert not (encoded.turns == 0).any()
    assert chat._scaffolds._parts == {}
