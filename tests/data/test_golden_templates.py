"""Ids and answers of every template we ship are those transformers gives, in many scripts, with tools and thoughts."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from golden_templates import GOLDEN, WITH_THOUGHTS, WITH_TOOLS, list_conversations, make_folder
from hub_folders import write_folder

from data.chat import list_templates, load_chat
from data.schema import Conversation, DataError, Turn
from data.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden")
    write_folder(directory, make_folder())
    return load_tokenizer(directory)


@functools.cache
def read_golden(name):
    rows = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return {row["conversation"]: row for row in rows}


CASES = [(name, each) for name in list_templates() for each in list_conversations(name)]


@pytest.mark.parametrize(("name", "conversation"), CASES, ids=lambda case: getattr(case, "id", case))
def test_ids_and_answers_are_golden(tokenizer, name, conversation):
    golden = read_golden(name)[conversation.id]
    encoded = load_chat(tokenizer, name).encode_conversation(conversation)
    assert encoded.ids.tolist() == golden["ids"]
    wanted = np.zeros(len(encoded.ids))
    for start, end in golden["answers"]:
        wanted[start:end] = 1
    assert encoded.weights.tolist() == wanted.tolist()


@pytest.mark.parametrize("name", list_templates())
def test_every_golden_file_holds_every_conversation(name):
    assert list(read_golden(name)) == [each.id for each in list_conversations(name)]


HARD = (WITH_TOOLS[0], WITH_THOUGHTS[0])
LACKING = [(name, each) for name in list_templates() for each in HARD if each not in list_conversations(name)]


@pytest.mark.parametrize(("name", "conversation"), LACKING, ids=lambda case: getattr(case, "id", case))
def test_what_a_template_has_no_form_for_is_refused_and_never_left_out(tokenizer, name, conversation):
    with pytest.raises(DataError, match=rf"golden {conversation.id}, template {name}: .* (no form for|leaves out)"):
        load_chat(tokenizer, name).encode_conversation(conversation)


@pytest.mark.realdata
@pytest.mark.skipif("POLYTUNE_REALDATA" not in os.environ, reason="needs POLYTUNE_REALDATA")
@pytest.mark.parametrize("name", list_templates())
def test_answers_in_two_hundred_languages_are_trained_whole(tokenizer, name):
    file = Path(os.environ["POLYTUNE_REALDATA"]) / "train" / "sib200_topic_parallel.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = list({row["_lang"]: row["text"] for row in rows}.values())
    assert len(rows) > 200
    chat = load_chat(tokenizer, name)
    for text in rows:
        turns = (Turn("user", f"Again: {text}"), Turn("assistant", text))
        encoded = chat.encode_conversation(Conversation(turns=turns, language="und", source="sib200"))
        said = tokenizer.decode(encoded.ids[encoded.weights > 0].tolist())
        assert said.removeprefix("<think>\n\n</think>\n\n").strip() == tokenizer.decode(tokenizer.encode(text)).strip()
