import pytest

from data.languages import LanguageError, english_name, is_rtl, own_name, script_of, standardize
from data.schema import DataError


@pytest.mark.parametrize(
    ("given", "standard"),
    [
        ("swh_Latn", "sw"),
        ("afr", "af"),
        ("nob", "nb"),
        ("ben_Beng", "bn"),
        ("zho_Hant", "zh-Hant"),
        ("iw", "he"),
        ("ace_Arab", "ace-Arab"),
        ("pt_BR", "pt-BR"),
        ("EN", "en"),
        ("kzj", "dtp"),
        (" fr ", "fr"),
    ],
)
def test_one_standard_form_for_bcp47_iso_and_flores(given, standard):
    assert standardize(given) == standard
    assert standardize(standard) == standard


def test_norwegian_is_a_language_and_false_is_not():
    assert standardize("no") == "no"
    with pytest.raises(LanguageError, match="quote it"):
        standardize(False)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "tag",
    [
        "",
        "xx",
        "zzz",
        "english",
        "tatoeba",
        "en-",
        "und",
        "mul",
        "zxx",
        "x-private",
        "en/fr",
        "no way",
        "swh_Lat",
    ],
)
def test_what_is_no_language_is_refused_by_name(tag):
    with pytest.raises(LanguageError, match="is not a language tag; give BCP-47") as error:
        standardize(tag)
    assert repr(tag) in str(error.value)
    assert isinstance(error.value, DataError)


@pytest.mark.parametrize("value", [None, 7, ["en"], {"en": 1}])
def test_a_tag_that_is_not_text_is_refused_not_crashed_on(value):
    with pytest.raises(LanguageError, match="is not text but"):
        standardize(value)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("english", "en"), ("swahilli", "sw"), ("jp", "ja"), ("cz", "cs"), ("swh_Lat", "swh-Latn")],
)
def test_a_slip_gets_the_tag_that_was_meant(wrong, meant):
    with pytest.raises(LanguageError, match=rf"did you mean .*\b{meant}\b"):
        standardize(wrong)


@pytest.mark.parametrize(
    ("tag", "script", "rtl"),
    [
        ("en", "Latn", False),
        ("ar", "Arab", True),
        ("fa", "Arab", True),
        ("he", "Hebr", True),
        ("nqo", "Nkoo", True),
        ("dv", "Thaa", True),
        ("ks-Deva", "Deva", False),
        ("ks", "Arab", True),
        ("pa", "Guru", False),
        ("pa-PK", "Arab", True),
        ("zh", "Hans", False),
        ("zh-TW", "Hant", False),
        ("ja", "Jpan", False),
        ("arb_Latn", "Latn", False),
    ],
)
def test_script_and_direction(tag, script, rtl):
    assert (script_of(tag), is_rtl(tag)) == (script, rtl)


@pytest.mark.parametrize(
    ("tag", "english", "own"),
    [
        ("sw", "Swahili", "Kiswahili"),
        ("swh_Latn", "Swahili", "Kiswahili"),
        ("he", "Hebrew", "עברית"),
        ("zh-Hant", "Traditional Chinese", "繁體中文"),
        ("nb", "Norwegian Bokmål", "norsk bokmål"),
        ("arb-Latn", "Arabic (Latin)", "العربية"),
        ("csb", "Kashubian", "Kashubian"),
        ("acm", "acm", "acm"),
        ("qaa", "qaa", "qaa"),
    ],
)
def test_names(tag, english, own):
    assert (english_name(tag), own_name(tag)) == (english, own)
