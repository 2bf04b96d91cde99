"""Where a row's language is said: by field, by path, by the recipe, and never `und`."""

import pytest
from rows_of_forms import convert_source, converter_of, row

from data.schema import DataError
from data.schemas.converter import make_converter
from data.schemas.row_language import find_rule

ASKED = {"prompt": "a", "completion": "b"}


def language_of(fields, *sample, file="rows.jsonl", **settings):
    rows = [row(each) for each in sample or (fields,)]
    conversation = make_converter(convert_source(**settings), rows, place="s").convert(row(fields, file=file))
    assert conversation is not None
    return conversation.language


@pytest.mark.parametrize(
    ("said", "tag"),
    [
        ({"language": "swh_Latn"}, "sw"), ({"lang": "afr"}, "af"), ({"_lang": "ace_Arab"}, "ace-Arab"),
        ({"lang_code": "zho_Hant"}, "zh-Hant"), ({"language": "Swahili"}, "sw"), ({"language": "english"}, "en"),
        # the Aya data set has both; the code is the more exact one
        ({"language": "Standard Malay", "language_code": "zsm"}, "ms"),
        ({"language": "", "lang": "yo", "_lang": "yo"}, "yo"),
    ],
)  # fmt: skip
def test_a_field_of_the_row_is_found_with_a_notice(said, tag):
    assert language_of(ASKED | said) == tag
    rule, notices = find_rule(convert_source(), [row(ASKED | said)], place="s")
    assert notices == (f"source x: language of each row read from `{rule.field}`",)


def test_columns_and_language_say_which_field_it_is():
    fields = ASKED | {"tongue": "sw", "lang": "fr"}
    assert language_of(fields, columns={"language": "tongue"}) == "sw"
    assert language_of(fields, language={"field": "tongue"}) == "sw"


@pytest.mark.parametrize(
    ("rule", "file", "tag"),
    [
        ({"file_name": r"x_(.+)\.jsonl"}, "a/b/x_swh_Latn.jsonl", "sw"),
        ({"path": r"(?:^|/)([a-z]{3}_[A-Z][a-z]{3})/"}, "flores/ace_Arab/train.jsonl", "ace-Arab"),
        ({"path": "^([^/]+)/", "codes": {"kiswahili": "sw"}}, "kiswahili/train.jsonl", "sw"),
        ({"path": "^([^/]+)/"}, "Yoruba/train.jsonl", "yo"),
        ({"constant": "swh"}, "rows.jsonl", "sw"),
    ],
)
def test_a_path_or_the_recipe_says_it(rule, file, tag):
    assert language_of(ASKED, file=file, language=rule) == tag


def test_names_of_the_datas_own_win_over_codes():
    """`no` stands for Nynorsk in this data, and `kom` for Kom, which as a code is Komi."""
    codes = {"no": "nn", "kom": "bkm"}
    assert language_of(ASKED | {"l": "no"}, language={"field": "l", "codes": codes}) == "nn"
    assert language_of(ASKED | {"l": "kom"}, language={"field": "l", "codes": codes}) == "bkm"
    assert language_of(ASKED | {"l": "kom"}, language={"field": "l"}) == "kv"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [ASKED],
            r"^s: rows of source 'x' do not say their language; fields of rows.jsonl:1 are prompt, .*; say .*\{field",
        ),
        (
            [ASKED | {"language": "Klingonese"}],
            r"name no language in `language` \(the text 'Klingonese' at rows\.jsonl:1",
        ),
        (
            [ASKED | {"language": "en", "lang": "fr"}],
            r"name different languages \(language en, lang fr at rows\.jsonl:1\); .*`language: \{field: language\}`",
        ),
    ],
)
def test_a_source_without_a_clear_language_is_refused_with_the_ways_to_say_it(rows, message):
    with pytest.raises(DataError, match=message):
        find_rule(convert_source(), [row(each) for each in rows], place="s")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "no field 'lang' to read the language from"), ({"lang": None}, "field 'lang': .*not text but NoneType"),
        ({"lang": ""}, "'' is not a language tag"), ({"lang": "und"}, "'und' is not a language tag"),
        ({"lang": False}, "quote it"), ({"lang": "Kom"}, "the code of Komi .* and the name of another language"),
        ({"lang": "Unknown language"}, "is not a language tag"),
    ],
)  # fmt: skip
def test_a_row_without_a_language_is_a_bad_row_and_never_und(said, reason):
    with pytest.raises(DataError, match=reason):
        language_of(ASKED | said, ASKED | {"lang": "sw"})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"path": "abc"}, r"^data\.sources\.0\.language\.path: .*exactly one group"),
        ({"path": "("}, r"^data\.sources\.0\.language\.path: .*no regular expression"),
        ({"field": "l", "codes": {"a": "xx"}}, r"^data\.sources\.0\.language: codes\.a: 'xx' is not a language tag"),
    ],
)
def test_a_rule_that_cannot_work_is_named_before_any_row_is_read(rule, message):
    with pytest.raises(DataError, match=message):
        converter_of(ASKED, language=rule)


@pytest.mark.parametrize("rule", [{"path": "^(x)/"}, {"path": "^(x)?rows"}, {"file_name": "(x)"}])
def test_a_path_that_does_not_match_is_a_bad_row(rule):
    with pytest.raises(DataError, match=r"'rows\.jsonl' does not match language\."):
        language_of(ASKED, language=rule)
