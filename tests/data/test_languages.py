import pytest

from data.languages import LanguageError, english_name, is_rtl, own_name, resolve, script_of, standardize
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


@pytest.mark.parametrize(
    ("given", "tag"),
    [
        ("swh_Latn", "sw"), ("Swahili", "sw"), ("swahili", "sw"), (" Traditional Chinese ", "zh-Hant"), ("Lao", "lo"),
        ("kom", "kv"), ("KOM", "kv"), ("Ewe", "ee"), ("mine", "fr"), ("no", "no"),
    ],
)  # fmt: skip
def test_data_may_name_a_language_by_code_by_english_name_or_in_its_own_way(given, tag):
    assert resolve(given, {"mine": "fra"}) == tag


def test_every_english_name_resolves_to_its_language_or_says_why_not():
    languages = {tag: english_name(tag) for tag in ("sw", "ace", "nb", "yo", "zh", "ar", "en", "tw", "ckb", "fil")}
    assert {tag: resolve(name) for tag, name in languages.items()} == {tag: tag for tag in languages}


@pytest.mark.parametrize("given", ["Kom", "Laz", "Asu"])
def test_a_name_that_is_another_languages_code_is_not_guessed(given):
    with pytest.raises(LanguageError, match=f"'{given}' is the code of .* and the name of another language"):
        resolve(given)


@pytest.mark.parametrize("given", ["Klingonese", "", "und", "Multiple languages", "Unknown language", None, 3, ["en"]])
def test_what_names_no_language_is_refused(given):
    with pytest.raises(LanguageError):
        resolve(given)


@pytest.mark.parametrize("tag", ["x" * 10_000, "en-" + "a" * 10_000, [["sw"] * 9] * 99, 10**5000], ids=type)
def test_what_is_no_language_is_shown_in_a_line(tag):
    """A whole document in the field of the language, and the error was the document."""
    with pytest.raises(DataError, match=r"^[^\n]{20,250}$"):
        resolve(tag)
