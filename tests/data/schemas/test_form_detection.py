"""Which form rows have: exactly one that is known, or an error that says how to say it."""

import pytest
from rows_of_forms import GOOD, SAID, convert_source, converter_of, row, turns_of

from data.schema import DataError, Turn
from data.schemas.detection import check_columns
from data.schemas.forms import FORMS

SHAREGPT = [{"from": "human", "value": "Habari?"}, {"from": "gpt", "value": "Nzuri."}]
HH = "\n\nHuman: Habari?\n\nAssistant:"
TREE = {"message_id": "m", "parent_id": None, "role": "prompter", "text": "Habari?"}


def test_every_form_of_the_table_has_a_good_row_here():
    assert {form.name for form in FORMS} == set(GOOD)


@pytest.mark.parametrize("form", GOOD)
def test_a_form_is_known_by_its_fields(form):
    converter = converter_of(GOOD[form])
    assert (converter.form, converter.notices[0]) == (form, f"source x: rows read as `{form}`")


@pytest.mark.parametrize(
    ("fields", "form", "taken"),
    [
        ({"dialog": SAID}, "messages", "`dialog` taken for `messages`"),
        ({"conversation": SAID}, "messages", "`conversation` taken for `messages`"),
        ({"conversations": SAID}, "messages", "`conversations` taken for `messages`"),
        ({"messages": SHAREGPT}, "conversations", "`messages` taken for `conversations`"),
        ({"messages": '[{"role": "user"}]'}, "messages", ""),
        ({"instruction": "a", "response": "b"}, "instruction", "`response` taken for `output`"),
        # databricks-dolly-15k
        (
            {"instruction": "a", "context": "c", "response": "b", "category": "qa"},
            "instruction",
            "`response` taken for `output`, `context` taken for `input`",
        ),
        # tatsu-lab/alpaca has the rendered prompt in `text`
        ({"instruction": "a", "input": "c", "output": "b", "text": "### a b"}, "instruction", ""),
        # OpenOrca
        (
            {"id": "1", "system_prompt": "s", "question": "a", "response": "b"},
            "prompt_completion",
            "`question` taken for `prompt`, `response` taken for `completion`, `system_prompt` taken for `system`",
        ),
        ({"query": "a", "response": "b"}, "prompt_completion", "`query` taken for `prompt`"),
        ({"question": "a", "answer": "b"}, "prompt_completion", "`answer` taken for `completion`"),
        ({"inputs": "a", "targets": "b"}, "prompt_completion", "`inputs` taken for `prompt`, `targets` taken for"),
        ({"human": "a", "assistant": "b"}, "prompt_completion", "`human` taken for `prompt`, `assistant` taken for"),
        ({"input": "a", "output": "b"}, "prompt_completion", "`input` taken for `prompt`, `output` taken for"),
        ({"prompt": SAID[:1], "completion": SAID[1:]}, "prompt_completion", ""),
        # ultrachat_200k: the prompt again, beside the messages
        ({"prompt": "a", "prompt_id": "1", "messages": SAID}, "messages", ""),
        ({"problem": "a", "solution": "b", "messages": SAID}, "messages", ""),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "preference", "`question` taken for `prompt`"),
        ({"chosen": SAID, "rejected": SAID}, "preference", ""),
        ({"chosen": HH + " b", "rejected": HH + " c"}, "preference", ""),
        ({"prompt": "a", "responses": ["b", "c"]}, "ranked", "`prompt` taken for `instruction`, `responses` taken for"),
        ({"text": "a", "id": 1, "url": "u", "_src": "s"}, "text", ""),
        (TREE | {"rank": 0}, "tree", ""),
    ],
)
def test_names_of_peers_are_taken_with_a_notice(fields, form, taken):
    converter = converter_of(fields)
    assert converter.form == form
    assert taken in converter.notices[0]
    assert bool(taken) == ("taken" in converter.notices[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"a": "b", "c": 1}],
            r"have the fields a, c, which is none of the known forms: .*`rows:` and `columns:`, or w",
        ),
        ([{"source": "a", "target": "b"}], "none of the known forms"),
        ([{"messages": []}], "none of the known forms"),
        ([{"messages": ["a"]}], "none of the known forms"),
        ([{"prompt": 1, "completion": "b"}], "none of the known forms"),
        ([{"text": "a", "label": "b"}], "a text with others beside it, .* say `rows: text`"),
        ([{"data": "p", "chosen": "b", "rejected": "c"}], r"answers without a prompt; .*`columns: \{prompt: NAME\}`"),
        (
            [{"prompt": "a", "completion": "b", "messages": SAID}],
            r"read as `messages` \(rows\.jsonl:1\) or `prompt_completion` \(rows\.jsonl:1\); .*`rows: messages`",
        ),
        ([{"text": "a"}, {"messages": SAID}], r"`text` \(rows\.jsonl:1\) or `messages` \(rows\.jsonl:2\)"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "completion": "d"}], "`prompt_completion`.* or `preference`"),
        (
            [{"prompt": "a", "question": "b", "completion": "c"}],
            r"'prompt' and 'question' could both be the prompt .*`columns: \{prompt: prompt\}`",
        ),
        ([{"prompt": "a", "response": "b"}, {"prompt": "a", "answer": "b"}], "'response' and 'answer' could both"),
    ],
)
def test_what_is_unknown_or_unclear_is_never_guessed(rows, message):
    with pytest.raises(DataError, match=rf"^data\.sources\.0: .*{message}"):
        converter_of(*rows)


@pytest.mark.parametrize("lost", ["context", "passage", "choices", "options", "history"])
def test_a_question_is_not_trained_without_the_passage_it_asks_about(lost):
    fields = {"question": "a", "answer": "b", lost: "c"}
    with pytest.raises(DataError, match=f"would leave out {lost}; say `rows: prompt_completion` if that is meant"):
        converter_of(fields)
    assert f"source x: not read: {lost}" in converter_of(fields, rows="prompt_completion").notices
    with pytest.raises(DataError, match=f"field '{lost}' would go unread: none of the first 64 rows has it"):
        turns_of(fields, {"question": "a", "answer": "b"})


def test_unpaired_preferences_are_not_trained_as_if_every_completion_were_good():
    rows = [{"prompt": "a", "completion": "b", "label": label} for label in (False, True)]
    with pytest.raises(DataError, match="would leave out label"):
        converter_of(*rows)
    converter = converter_of(*rows, rows="prompt_completion", where="label")
    assert [converter.convert(row(each)) is None for each in rows] == [True, False]


def test_bad_rows_among_the_first_do_not_hide_the_form():
    converter = converter_of({"broken": 1}, GOOD["text"], {"text": 3}, {"text": None})
    assert converter.form == "text"


@pytest.mark.parametrize(
    ("sample", "later", "message"),
    [
        (
            {"prompt": "a", "completion": "b"},
            {"instruction": "a", "output": "b"},
            "'output' would go|no field 'prompt'|'in",
        ),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "response": "b"}, "field 'response' would go unread"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a"}, "no field 'completion'; fields are prompt"),
        (GOOD["messages"], GOOD["conversations"], "field 'conversations' would go unread"),
        ({"messages": SAID}, {"text": "a"}, "no field 'messages'; fields are text"),
        ({"messages": SAID}, {"messages": SHAREGPT}, r"no 'role' \(field 'messages', message 1\); it has from, value"),
        ({"messages": SAID}, {"messages": None}, "field 'messages' is null, not a list"),
        ({"text": "a"}, {"text": "a", "category": "b"}, "other fields beside the text: text, category"),
        ({"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "system_prompt": "s"}, "system_prompt"),
    ],
)
def test_a_later_row_of_another_form_is_a_bad_row(sample, later, message):
    with pytest.raises(DataError, match=message):
        turns_of(later, sample)


def test_a_system_prompt_that_comes_late_under_its_own_name_is_read():
    pair = {"prompt": "a", "completion": "b"}
    assert turns_of(pair | {"system": "s"}, pair)[0] == Turn("system", "s")


def test_columns_override_every_name_and_empty_fields_count_for_nothing():
    fields = {"q": "a", "question": "no", "ans": "b", "prompt": None, "sys": "s"}
    columns = {"prompt": "q", "completion": "ans", "system": "sys"}
    assert turns_of(fields, columns=columns) == (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"))
    message = {"speaker": "user", "says": "a"}
    fields = {"talk": [message, {"speaker": "model", "says": "b"}]}
    columns = {"messages": "talk", "role": "speaker", "content": "says"}
    assert turns_of(fields, rows="messages", columns=columns) == (Turn("user", "a"), Turn("assistant", "b"))


def test_an_optional_field_that_columns_names_may_come_late_but_not_unsaid():
    pair, columns = {"prompt": "a", "completion": "b"}, {"system": "sys"}
    assert turns_of(pair | {"sys": "s"}, pair, columns=columns)[0] == Turn("system", "s")
    told = "source x: named in `columns`, but in none of the first rows: sys"
    assert told in converter_of(pair, columns=columns).notices
    assert told not in converter_of(pair | {"sys": "s"}, columns=columns).notices


def test_a_column_that_the_form_has_no_use_for_is_refused():
    with pytest.raises(DataError, match=r"columns\.prompt: rows of source 'x' read as `messages`, which has no such"):
        converter_of({"messages": SAID, "p": 1}, columns={"prompt": "p"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": "mapping"}, r"^s\.rows is mapping, which needs templates"),
        ({"rows": "text", "messages": [{"role": "assistant", "content": "a"}]}, "rows: text and messages"),
        ({"columns": {"prompt": "a"}, "messages": [{"role": "assistant", "content": "a"}]}, "is for known forms"),
        ({"rows": "tree", "columns": {"text": "a"}}, r"name their fields in s\.tree"),
        ({"columns": {"langauge": "a"}}, r"^s\.columns\.langauge is no field of a form"),
        ({"columns": {"promt": "a"}}, r"did you mean prompt\?"),
        ({"rows": "text", "columns": {"prompt": "a"}}, r"s\.columns\.prompt is no field .*there are text, language"),
        ({"columns": {"language": "a"}, "language": {"field": "b"}}, r"columns\.language and language"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_named_by_its_key(settings, message):
    with pytest.raises(DataError, match=message):
        check_columns(convert_source(**settings), "s")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": "tree"}, r"rows of form `tree` need 'message_id' .*in `tree:` .the first row is rows.jsonl:1"),
        ({"rows": "instruction"}, r"`instruction` need 'instruction' \(or no other\); fields are text; .*columns"),
        (
            {"rows": "text", "columns": {"text": "txt"}},
            r"columns\.text is 'txt', .* did you mean text\? They have text",
        ),
    ],
)
def test_a_declared_form_that_the_rows_do_not_have_is_refused_before_any_is_read(settings, message):
    with pytest.raises(DataError, match=message):
        converter_of({"text": "a"}, **settings)


@pytest.mark.parametrize(
    "odd, message",
    [
        ({"prompt": "a", "question": "b", "completion": "c"}, "both be the prompt of source 'x', at .*:1 and .*:3"),
        ({"prompt": "a", "completion": "b", "history": "h"}, r"would leave out history; .*\(first at rows.jsonl:3\)"),
    ],
)
def test_one_odd_row_that_makes_a_source_unclear_is_named(odd, message):
    """One row in sixty-four refuses the source; which one is not for the user to search."""
    rows = [{"prompt": "a", "completion": "b"}] * 2
    with pytest.raises(DataError, match=message):
        converter_of(*rows, odd)
