import json
import os
from pathlib import Path

import msgspec
import pytest

from data.cldr import cldr_conversations
from data.schema import DataError
from data.source_config import CldrSource, FileSource, ProceduralSource
from eval.config import EvalConfig, EvalError
from eval.task import ChoiceTask, decode_task, follow_recipe, list_tasks, load_documents, load_task, thin_out

ROWS = [
    {"text": f"row {i}", "category": ("sports", "travel", "sports")[i % 3], "right": "b", "lang": lang}
    for lang, count in (("en", 10), ("sw", 3))
    for i in range(count)
]
CHOICE = """
kind: choice
name: topic
version: 3
sources:
  - kind: files
    name: topics
    path: rows.jsonl
    language: {field: lang}
    messages:
      - {role: user, content: "{{ text }}?"}
      - {role: assistant, content: "{{ category }}"}
options: [sports, travel]
"""


@pytest.fixture
def rows_root(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def test_every_shipped_task_decodes_under_its_own_name():
    assert list_tasks() == [
        "bits_per_byte", "facts", "heldout", "mgsm", "procedural", "rewrite", "sib200", "xcopa",
    ]  # fmt: skip
    for name in list_tasks():
        assert load_task(name).name == name


def test_bits_per_byte_asks_in_the_words_of_the_tasks():
    by_name = {source.name: source for source in load_task("bits_per_byte").sources}
    assert list(by_name) == ["xcopa", "afriqa", "tata"]
    assert load_task("xcopa").sources == (by_name["xcopa"],)


def test_an_unknown_task_names_the_nearest_and_the_list():
    with pytest.raises(EvalError, match=r"'fact'; did you mean facts\? There are bits_per_byte, facts"):
        load_task("fact")
    with pytest.raises(EvalError, match=r"nowhere\.yaml does not exist"):
        load_task("nowhere.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("options:", "option:"), "unknown field `option`; did you mean `options`"),
        (("version: 3", "version: three"), r"Expected `int`, got `str` - at `\$.version`"),
        (("kind: choice", "kind: choose"), "Invalid value 'choose'"),
        (("options: [sports, travel]", "options: [sports]"), "length >= 2"),
        (
            ("path: rows.jsonl", "pth: rows.jsonl"),
            r"unknown field `pth` - at `\$.sources\[0\]`; did you mean `path`",
        ),
        (("kind: choice", "kind: [choice"), "is not YAML"),
    ],
)
def test_a_wrong_task_file_says_where_and_what(change, message):
    with pytest.raises(EvalError, match=message):
        decode_task(CHOICE.replace(*change), origin="mine.yaml")


def test_norwegian_is_no_boolean():
    task = decode_task(CHOICE.replace("options: [sports, travel]", "options: [no, yes]"), origin="mine")
    assert isinstance(task, ChoiceTask) and task.options == ("no", "yes")


def test_a_reference_becomes_the_index_of_its_option(rows_root):
    documents = load_documents(decode_task(CHOICE, origin=""), data_root=rows_root)
    assert [document.label for document in documents[:4]] == [0, 1, 0, 0]
    assert documents[1].options == ("sports", "travel") and documents[1].target == "travel"
    assert [turn.content for turn in documents[0].conversation.turns] == ["row 0?", "sports"]


def test_options_can_be_templates_over_the_row(rows_root):
    text = CHOICE.replace("[sports, travel]", "['{{ text }}', '{{ category }}']")
    documents = load_documents(decode_task(text, origin=""), data_root=rows_root)
    assert documents[2].options == ("row 2", "sports") and documents[2].label == 1


def test_a_reference_that_is_no_option_is_refused(rows_root):
    task = decode_task(CHOICE.replace("[sports, travel]", "[sports, health]"), origin="")
    with pytest.raises(DataError, match=r"rows.jsonl:2: the options .* reference 'travel'"):
        load_documents(task, data_root=rows_root)
    same = decode_task(CHOICE.replace("[sports, travel]", "['{{ category }}', '{{ category }}']"), origin="")
    with pytest.raises(DataError, match="should differ"):
        load_documents(same, data_root=rows_root)


def test_options_need_the_templates_that_word_them(rows_root):
    messages = CHOICE[CHOICE.index("    messages:") : CHOICE.index("options:")]
    text = CHOICE.replace(messages, "    columns: {prompt: text, completion: category}\n")
    with pytest.raises(EvalError, match="source topics: a choice task words its options by `messages`; write them"):
        load_documents(decode_task(text, origin=""), data_root=rows_root)
    heldout = text.replace("kind: choice", "kind: heldout").replace("options: [sports, travel]", "")
    documents = load_documents(decode_task(heldout, origin=""), data_root=rows_root)
    assert (documents[1].conversation.turns[0].content, documents[1].target) == ("row 1", "travel")


def test_missing_files_name_task_file_and_folder(tmp_path):
    with pytest.raises(EvalError, match=f"task topic reads rows.jsonl, which is not under data_root {tmp_path}"):
        load_documents(decode_task(CHOICE, origin=""), data_root=tmp_path)
    text = CHOICE.replace("path: rows.jsonl", f"path: {tmp_path / 'rows-*.jsonl'}")
    with pytest.raises(EvalError, match=r"rows-\*.jsonl, which is not under data_root elsewhere"):
        load_documents(decode_task(text, origin=""), data_root=Path("elsewhere"))


def test_a_full_path_is_read_from_any_data_root(rows_root, tmp_path_factory):
    text = CHOICE.replace("path: rows.jsonl", f"path: {rows_root / 'rows.jsonl'}")
    documents = load_documents(decode_task(text, origin=""), data_root=tmp_path_factory.mktemp("other"))
    assert len(documents) == len(ROWS)


def test_limit_keeps_every_language_and_spreads_evenly(rows_root):
    documents = load_documents(decode_task(CHOICE, origin=""), data_root=rows_root)
    kept = [(d.conversation.language, d.conversation.turns[0].content) for d in thin_out(documents, 4)]
    english = [("en", f"row {i}?") for i in (0, 3, 5, 8)]
    assert kept == english + [("sw", f"row {i}?") for i in range(3)]
    assert thin_out(documents, None) == documents


def test_facts_asks_what_the_recipe_taught_in_held_out_words():
    trained = CldrSource(languages=("fr", "sw"), tasks=("weekday_after",), facts=3, seed=7)
    recipe = {"data": {"sources": [msgspec.to_builtins(trained)]}}
    documents = load_documents(follow_recipe(load_task("facts"), recipe), data_root=Path())
    taught = {turns[1].content for turns in (c.turns for c in cldr_conversations(trained))}
    asked = {document.conversation.turns[0].content for document in documents}
    assert {document.target for document in documents} == taught
    assert {document.conversation.language for document in documents} == {"fr", "sw"}
    assert not asked & {c.turns[0].content for c in cldr_conversations(trained)}


def test_heldout_keeps_its_own_tasks_where_the_recipe_has_others():
    recipe = {"data": {"sources": [{"kind": "procedural", "tasks": ["copy"], "languages": ["sw"], "split": "train"}]}}
    documents = load_documents(follow_recipe(load_task("rewrite"), recipe), data_root=Path())
    assert {d.conversation.task for d in documents} == {"rewrite"}
    assert {d.conversation.language for d in documents} == {"sw"}


def test_a_task_of_files_follows_no_recipe():
    recipe = {"data": {"sources": [{"kind": "cldr", "facts": 2}]}}
    assert follow_recipe(load_task("sib200"), recipe) == load_task("sib200")


def test_a_run_is_not_asked_what_it_was_not_trained_on():
    recipe = {"data": {"sources": [{"kind": "cldr", "languages": ["sw"], "facts": 2}]}}
    assert follow_recipe(load_task("heldout"), recipe).sources == (
        CldrSource(languages=("sw",), facts=2, split="heldout"),
    )
    with pytest.raises(EvalError, match=r"task rewrite .* procedural source .* was not trained on such data"):
        follow_recipe(load_task("rewrite"), recipe)


def test_sources_of_another_version_are_named_and_not_half_followed():
    recipe = {"data": {"sources": [{"kind": "procedural", "languages": ["sw"], "shuffled": True}]}}
    with pytest.raises(EvalError, match=r"task rewrite follows .* another version of polytune .* field `shuffled`"):
        follow_recipe(load_task("rewrite"), recipe)


@pytest.mark.parametrize(("name", "language"), [("procedural", "sw"), ("rewrite", "th")])
def test_of_several_sources_the_one_that_teaches_the_task_is_followed(name, language):
    taught = {"sw": ["copy"], "th": ["rewrite"]}
    sources = [{"kind": "procedural", "tasks": tasks, "languages": [tag]} for tag, tasks in taught.items()]
    recipe = {"data": {"sources": [{"kind": "cldr", "languages": ["fr"]}, *sources]}}
    (source,) = follow_recipe(load_task(name), recipe).sources
    assert isinstance(source, ProceduralSource) and source.languages == (language,)


@pytest.mark.parametrize("tasks", [(), ("facts", "facts")])
def test_an_evaluation_of_nothing_or_of_twice_the_same_is_refused(tasks):
    with pytest.raises(ValueError, match="tasks"):
        EvalConfig(checkpoint="run", tasks=tasks)


def test_mgsm_questions_begin_as_in_the_worked_examples(tmp_path):
    (tmp_path / "mgsm_test.jsonl").write_text(
        "".join(
            json.dumps({"question": "2+2?", "answer": "4", "_lang": lang}) + "\n"
            for lang in ("bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
        )
    )
    documents = load_documents(load_task("mgsm"), data_root=tmp_path)
    prompts = {d.conversation.language: d.conversation.turns[0].content for d in documents}
    assert prompts["fr"] == "Question : 2+2?" and prompts["zh"] == "问题：2+2?" and len(prompts) == 11


def test_options_are_rendered_by_the_source_they_belong_to():
    (source,) = load_task("xcopa").sources
    assert isinstance(source, FileSource) and source.messages[-1].role == "assistant"


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "documents", "languages"),
    [("sib200", 2050, 205), ("xcopa", 2200, 11), ("mgsm", 2750, 11), ("bits_per_byte", 2605, 21)],
)
def test_real_files_give_every_document_and_language(name, documents, languages):
    root = os.environ.get("POLYTUNE_REALDATA")
    if not root:
        pytest.skip("POLYTUNE_REALDATA is not set")
    found = load_documents(load_task(name), data_root=Path(root) / "eval")
    assert len(found) == documents
    assert len({document.conversation.language for document in found}) == languages
