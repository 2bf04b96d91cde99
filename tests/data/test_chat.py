"""A run keeps the template it was trained with, and refuses another."""

import json
import pickle

import pytest
from fake_tokenizer import FakeTokenizer

from data.chat import SHIPPED, SOURCE_FILE, list_templates, load_chat, load_saved_chat, read_saved_date, save_chat
from data.config import TokenizerConfig
from data.control_template import ControlTemplate
from data.schema import Conversation, DataError, Turn
from data.template import JinjaTemplate
from data.tokenizer import train_tokenizer

OWN = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}" + OWN
PIECES = train_tokenizer(["ab abc"], TokenizerConfig(vocab_size=300))
TURNS = (Turn("user", "ab"), Turn("assistant", "abc"))


def make_tokenizer(chat_template=None):
    return FakeTokenizer(
        ["<s>", "</s>", "<|im_start|>", "<|im_end|>"], bos="<s>", eos="</s>", chat_template=chat_template
    )


def test_without_a_name_the_tokenizers_own_template_is_used():
    assert isinstance(load_chat(PIECES), ControlTemplate)
    assert load_chat(make_tokenizer(OWN)).jinja == OWN
    with pytest.raises(DataError, match=r"no chat template; set tokenizer.template to a file or one of alpaca, chatml"):
        load_chat(make_tokenizer())


def test_a_shipped_name_wins_and_a_path_is_read(tmp_path):
    tokenizer = make_tokenizer(OWN)
    assert load_chat(tokenizer, "chatml").jinja == (SHIPPED / "chatml.jinja").read_text()
    (tmp_path / "mine.jinja").write_bytes(OWN.replace("user", "\r\n").encode())
    assert load_chat(tokenizer, str(tmp_path / "mine.jinja")).jinja == OWN.replace("user", "\r\n")
    with pytest.raises(DataError, match=r"template 'chatlm' is no file that can be read .* or one of alpaca, chatml"):
        load_chat(tokenizer, "chatlm")


def test_all_ten_templates_are_there():
    assert list_templates() == [
        "alpaca", "chatml", "command_r", "gemma", "llama3", "mistral", "plain", "qwen2_5", "qwen3", "zephyr"
    ]  # fmt: skip


def test_a_sentencepiece_tokenizer_can_take_a_template_that_needs_only_an_end_of_text():
    chat = load_chat(PIECES, "plain")
    encoded = chat.encode_conversation(Conversation(turns=TURNS, language="en", source="s"))
    assert PIECES.decode(encoded.ids.tolist()) == "User:\nab\n\nAssistant:\nabc\n\n"
    assert encoded.ids[0] == PIECES.bos_id
    assert encoded.ids[encoded.weights > 0].tolist() == [*PIECES.encode("abc"), PIECES.end_id]
    with pytest.raises(DataError, match=r"template chatml: it closes an answer with '<\|im_end\|>\\n'.*no model could"):
        load_chat(PIECES, "chatml")


@pytest.mark.parametrize(
    "chat",
    [
        ControlTemplate(tokenizer=PIECES, extra_stop_ids=(9,)),
        load_chat(make_tokenizer(), "chatml", extra_stop_ids=(7,)),
        load_chat(make_tokenizer(DATED), date="2024-07-26"),
    ],
    ids=["control", "jinja", "dated"],
)
def test_a_stored_template_comes_back_as_it_was(chat, tmp_path):
    save_chat(chat, tmp_path)
    loaded = load_saved_chat(chat.tokenizer, tmp_path)
    assert (loaded.hash, loaded.stop_ids, loaded.name) == (chat.hash, chat.stop_ids, chat.name)
    assert (tmp_path / SOURCE_FILE).read_text() == chat.jinja
    assert loaded.encode_prompt(TURNS[:1]) == chat.encode_prompt(TURNS[:1])
    assert pickle.loads(pickle.dumps(loaded)).encode_prompt(TURNS[:1]) == chat.encode_prompt(TURNS[:1])


def test_a_template_that_prints_the_day_prints_the_same_one_ever_after(tmp_path):
    chat = load_chat(make_tokenizer(DATED), date="2024-07-26")
    encoded = chat.encode_conversation(Conversation(turns=TURNS, language="en", source="s"))
    assert chat.tokenizer.decode(encoded.ids.tolist()).startswith("26 Jul 2024user: ab")
    save_chat(chat, tmp_path)
    assert read_saved_date(tmp_path) == "2024-07-26"
    assert load_chat(make_tokenizer(DATED), date="2024-07-27").hash != chat.hash
    assert load_chat(make_tokenizer(OWN), date="2024-07-27").hash == load_chat(make_tokenizer(OWN)).hash


def test_a_run_of_before_there_were_templates_has_the_control_tokens(tmp_path):
    assert isinstance(load_saved_chat(PIECES, tmp_path), ControlTemplate)
    assert read_saved_date(tmp_path) is None
    with pytest.raises(DataError, match="holds no chat template"):
        load_saved_chat(make_tokenizer(), tmp_path)


def test_a_template_changed_after_it_was_stored_is_refused(tmp_path):
    chat = load_chat(make_tokenizer(), "chatml")
    save_chat(chat, tmp_path)
    (tmp_path / SOURCE_FILE).write_text(chat.jinja.replace("\\n", " "))
    with pytest.raises(DataError, match=r"polytune_template.jinja has hash .* says .* copy the folder again"):
        load_saved_chat(chat.tokenizer, tmp_path)
    facts = tmp_path / "polytune_template.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"extra_stop_ids": "x"}))
    with pytest.raises(DataError, match="holds no chat template"):
        load_saved_chat(chat.tokenizer, tmp_path)


def test_a_hash_knows_source_and_manner_and_no_tokenizer():
    one = load_chat(make_tokenizer(), "chatml")
    other = JinjaTemplate(tokenizer=FakeTokenizer(["<|im_end|>"]), jinja=one.jinja, name="x")
    assert one.hash == other.hash != load_chat(make_tokenizer(), "plain").hash
