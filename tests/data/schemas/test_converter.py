"""Converters: made once a source, sent to other processes, the same everywhere; and real files, detected."""

import json
import os
import pickle
from pathlib import Path

import pytest
from rows_of_forms import GOOD, SAID, convert_source, converter_of, row, turns_of

from data.bad_rows import BadRows
from data.schema import DataError
from data.schemas.converter import SAMPLE_ROWS, make_converter
from data.source_config import FileSource
from data.sources import convert_row, load_source

QA = [{"role": "user", "content": "{{ q }}"}, {"role": "assistant", "content": "{{ a }}"}]


@pytest.mark.parametrize("settings", [{}, {"where": "line != 2"}, {"messages": QA, "where": "q != 'x'"}])
def test_a_converter_goes_to_another_process_used_or_not(settings):
    fields = {"q": "a", "a": "b"} if "messages" in settings else GOOD["instruction"]
    converter = converter_of(fields, **settings)
    fresh = pickle.loads(pickle.dumps(converter))
    expected = [converter.convert(row(fields, line=line)) for line in (1, 2)]
    used = pickle.loads(pickle.dumps(converter))
    for copy in (fresh, used):
        assert [copy.convert(row(fields, line=line)) for line in (1, 2)] == expected
        assert (copy.form, copy.notices) == (converter.form, converter.notices)


def test_where_sees_the_row_of_any_form():
    converter = converter_of(GOOD["text"], where="text != 'x' and language == 'sw'")
    assert converter.convert(row({"text": "x"})) is None
    assert converter.convert(row({"text": "y"})) is not None
    with pytest.raises(DataError, match=r"data\.sources\.0\.where: 'kept' is undefined"):
        converter_of(GOOD["text"], where="kept").convert(row({"text": "x"}))


def test_rows_are_converted_one_by_one_and_counted():
    converter = converter_of(GOOD["text"], where="text != 'x'")
    bad_rows = BadRows("skip")

    def rows():
        for line, text in enumerate(("a", "x", "", "b"), start=1):
            yield row({"text": text}, line=line)

    found = [convert_row(each, converter, bad_rows=bad_rows) for each in rows()]
    assert [conversation and conversation.id for conversation in found] == ["rows.jsonl:1", None, None, "rows.jsonl:4"]
    assert [(bad.line, bad.language) for bad in bad_rows.rows] == [(3, "sw")]
    assert bad_rows.left_out["x"] == {"where": 1}


def test_a_tree_is_not_converted_message_by_message():
    tree = {"message_id": "m", "parent_id": None, "role": "prompter", "text": "a"}
    with pytest.raises(ValueError, match="read whole trees"):
        converter_of(tree).convert(row(tree))


def test_an_empty_sample_needs_a_mapping():
    with pytest.raises(DataError, match="has no good row to see its form by"):
        make_converter(convert_source(language={"constant": "sw"}), [], place="s")


def test_half_a_surrogate_in_a_field_name_can_be_written_in_the_reason():
    with pytest.raises(DataError, match=r"fields are .ud800") as error:
        turns_of({"\ud800": "a"}, GOOD["text"], rows="text")
    str(error.value).encode()


def test_a_prompt_of_messages_notices_that_its_answers_are_not_trained():
    told = "source x: answers within prompts are not trained, only the one that follows"
    assert told in converter_of({"prompt": SAID[:1], "completion": "a"}).notices
    assert told not in converter_of({"prompt": "a", "completion": "a"}).notices


KNOWN = {
    "train/gsm8k_en_train.jsonl": ("prompt_completion", 600),
    "train/oasst1_en_validation_messages.jsonl": ("tree", 117),
    "train/oasst1_zh_sft.jsonl": ("instruction", 689),
    "prefs/oasst1_en_rank_pairs.jsonl": ("preference", 250),
    "prefs/oasst1_zh_ranked.jsonl": ("ranked", 775),
}
UNREAD = {
    "prefs/tata_human_rating_pairs.jsonl": "answers without a prompt",
    "train/sib200_topic_parallel.jsonl": "a text with others beside it",
}
UNKNOWN = "none of the known forms"
"""The rest: questions and answers in fields of their own names, which only a mapping can put together."""


def real_folder() -> Path:
    if not (folder := os.environ.get("POLYTUNE_REALDATA")):
        pytest.skip("POLYTUNE_REALDATA is not set")
    return Path(folder)


@pytest.mark.realdata
def test_every_real_file_is_read_in_its_form_or_says_why_not():
    folder, found, unread = real_folder(), {}, {}
    files = sorted(path for part in ("train", "prefs") for path in (folder / part).glob("*.jsonl"))
    for path in files:
        name = path.relative_to(folder).as_posix()
        with path.open(encoding="utf-8") as lines:
            sample = [row(json.loads(line), line=n) for n, line in zip(range(1, SAMPLE_ROWS + 1), lines, strict=False)]
        source = FileSource(name="x", path=name)
        try:
            form = make_converter(source, sample, place="x").form
        except DataError as error:
            assert UNREAD.get(name, UNKNOWN) in str(error)
            unread[name] = str(error)
        else:
            found[name] = (form, len(load_source(source, root=folder, bad_rows=BadRows("skip"))))
    assert found == KNOWN
    assert len(unread) == len(files) - len(KNOWN) == 11


@pytest.mark.realdata
def test_columns_name_what_a_real_file_calls_otherwise():
    folder = real_folder()
    columns = {"prompt": "linearized_input"}
    source = FileSource(name="x", path="prefs/tata_human_rating_pairs.jsonl", columns=columns)
    conversations = load_source(source, root=folder, bad_rows=BadRows("error"))
    assert (len(conversations), len({c.language for c in conversations})) == (701, 8)
    columns = {"prompt": "q", "completion": "a"}
    source = FileSource(name="x", path="train/mgsm_cot_exemplars.jsonl", columns=columns)
    assert len(load_source(source, root=folder, bad_rows=BadRows("error"))) == 88
