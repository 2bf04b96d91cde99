"""Answers with an order: the best is trained, every other is read and checked."""

import pytest
from rows_of_forms import GOOD, SAID, converter_of, turns_of

from data.schema import DataError, Turn
from data.schemas.preference import read_ranked

Q, A, BAD = Turn("user", "Habari?"), Turn("assistant", "Nzuri."), Turn("assistant", "Sijui.")
TRAINED = "source x: the preferred answer is trained; the others are read and checked only"


def ranked(fields, **settings):
    shape = converter_of(fields, **settings).shape
    return read_ranked(fields, form=shape.form, columns=shape.columns)


@pytest.mark.parametrize("form", ["preference", "ranked"])
def test_the_user_is_told_that_only_the_preferred_answer_is_trained(form):
    assert TRAINED in converter_of(GOOD[form]).notices


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "Habari?", "chosen": "Nzuri.", "rejected": "Sijui."},
        {"prompt": SAID[:1], "chosen": SAID[1:], "rejected": "Sijui."},
        # UltraFeedback: the prompt as text, and again at the head of both answers
        {"prompt": "Habari?", "chosen": SAID, "rejected": [SAID[0], {"role": "assistant", "content": "Sijui."}]},
        # the implicit form: what both begin with
        {"chosen": SAID, "rejected": [SAID[0], {"role": "assistant", "content": "Sijui."}]},
        # HH-RLHF
        {
            "chosen": "\n\nHuman: Habari?\n\nAssistant: Nzuri.",
            "rejected": "\n\nHuman: Habari?\n\nAssistant: Sijui.",
        },
        {"instruction": "Habari?", "output": ["Nzuri.", "Sijui."]},
    ],
)
def test_every_way_to_write_a_preference_gives_prompt_and_answers_best_first(fields):
    assert ranked(fields) == ((Q,), ((A,), (BAD,)))
    assert turns_of(fields) == (Q, A)


def test_a_shared_beginning_ends_before_the_last_answer_even_if_both_are_alike():
    turns = [*SAID, *SAID]
    found = ranked({"chosen": turns, "rejected": turns})
    assert found.prompt == (Q, Turn("assistant", "Nzuri.", train=False), Q)
    assert found.answers == ((A,), (A,))


def test_answers_that_go_on_for_several_turns_are_kept_whole():
    other = {"role": "assistant", "content": "Sijui."}
    found = ranked({"chosen": [*SAID, *SAID], "rejected": [SAID[0], other]})
    assert found == ((Q,), ((A, Q, A), (BAD,)))


def test_system_history_and_input_belong_to_the_prompt():
    fields = GOOD["instruction"] | {"output": ["nzuri", "mbaya"]}
    found = ranked(fields)
    assert [turn.content for turn in found.prompt] == ["Kuwa mfupi.", "Habari?", "Nzuri.", "Tafsiri.\n\ngood"]
    assert [turn.train for turn in found.prompt] == [None, None, False, None]


@pytest.mark.parametrize(
    ("fields", "form", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "preference", r"empty assistant turn \(field 'rejected'\)"),
        ({"prompt": "a", "chosen": "b", "rejected": None}, "preference", "field 'rejected' is null"),
        ({"prompt": "a", "chosen": "b"}, "preference", "no field 'rejected'"),
        (
            {"chosen": "b", "rejected": "c"},
            "preference",
            "no prompt: field 'prompt' is missing, and 'chosen' is neither",
        ),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "preference", "no prompt"),
        ({"chosen": SAID, "rejected": SAID[1:]}, "preference", "do not begin alike"),
        ({"prompt": "a", "chosen": SAID, "rejected": "c"}, "preference", "'chosen' begins with a user turn"),
        ({"prompt": "a", "chosen": "b", "rejected": SAID[:1]}, "preference", "'rejected' begins with a user turn"),
        ({"instruction": "a", "output": []}, "ranked", "field 'output' is a list without answers"),
        ({"instruction": "a", "output": ["b", ""]}, "ranked", "empty assistant turn"),
        ({"instruction": "a", "output": ["b", 3]}, "ranked", "field 'output', answer 2 is a number"),
        ({"instruction": "a", "output": {"b": 1}}, "ranked", "field 'output' is an object, not a list"),
        ({"instruction": "a"}, "ranked", "no field 'output'"),
    ],
)
def test_a_bad_answer_is_a_bad_row_also_where_it_is_not_trained(fields, form, reason):
    with pytest.raises(DataError, match=reason):
        turns_of(fields, GOOD[form])
