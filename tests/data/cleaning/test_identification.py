import sys
import types

import pytest
from conversations import chat

from data.cleaning.identification import check_language, is_close, is_known, load_identifier
from data.cleaning_config import LanguageCheck
from data.schema import DataError

# Sentences written for this test.
TEXTS = {
    "en": "The little boat left the harbour early in the morning and came back with a lot of fish.",
    "de": "Das kleine Boot verließ den Hafen früh am Morgen und kam mit vielen Fischen zurück.",
    "fr": "Le petit bateau a quitté le port tôt le matin et il est revenu avec beaucoup de poissons.",
    "sw": "Mashua ndogo iliondoka bandarini asubuhi na mapema na ikarudi ikiwa na samaki wengi sana.",
    "ru": "Маленькая лодка рано утром вышла из гавани и вернулась с большим уловом рыбы.",
    "uk": "Маленький човен рано-вранці вийшов із гавані й повернувся з великим уловом риби.",
    "hi": "छोटी नाव सुबह-सुबह बंदरगाह से निकली और बहुत सारी मछलियाँ लेकर वापस आ गई।",
    "zh": "小船一大早就离开了港口，到了傍晚带着很多很多的鱼回来了，大家都非常高兴，于是一起吃了晚饭，然后唱歌。",
    "fa": "قایق کوچک صبح زود از بندر بیرون رفت و با ماهی‌های فراوان به خانه بازگشت.",
}


@pytest.mark.parametrize("tag", TEXTS)
def test_a_text_in_the_tags_language_is_kept(tag):
    finding = check_language(chat(TEXTS[tag], language=tag), check=LanguageCheck(), model=None)
    assert (finding.detail, finding.is_judged) == ("", True)


@pytest.mark.parametrize(
    ("tag", "really"),
    [("sw", "en"), ("de", "fr"), ("uk", "ru"), ("fr", "de"), ("zh", "en"), ("hi", "sw"), ("ru", "uk")],
)
def test_a_row_tagged_with_another_language_is_found(tag, really):
    finding = check_language(chat(TEXTS[really], language=tag), check=LanguageCheck(), model=None)
    assert finding.detail.startswith(f"tagged {tag}, but answer identified as {really} (")


@pytest.mark.parametrize("tag", ["ace-Arab", "ar-Latn", "ks-Deva", "lus", "umb", "dyu", "hne"])
def test_a_language_or_script_the_identifier_has_not_seen_is_not_judged(tag):
    """Asked for Acehnese in Arabic letters, py3langid answers Egyptian Arabic, and the row would be lost."""
    finding = check_language(chat(TEXTS["en"], language=tag), check=LanguageCheck(), model=None)
    assert (finding.detail, finding.is_judged) == ("", False)


def test_short_texts_code_and_excepted_tasks_are_not_judged():
    check = LanguageCheck(except_tasks=("translation",))
    assert not check_language(chat("Bonjour le monde", language="de"), check=check, model=None).is_judged
    code = "```\n" + TEXTS["en"] + "\n```"
    assert not check_language(chat(code, language="de"), check=check, model=None).is_judged
    task = chat(TEXTS["en"], language="de", task="translation")
    assert not check_language(task, check=check, model=None).is_judged


def test_the_part_and_the_confidence_are_the_recipes():
    row = chat(TEXTS["de"], prompt=TEXTS["en"], language="de")
    assert check_language(row, check=LanguageCheck(), model=None).detail == ""
    assert "prompt identified as en" in check_language(row, check=LanguageCheck(part="prompt"), model=None).detail
    wrong = chat(TEXTS["fr"], language="de")
    assert check_language(wrong, check=LanguageCheck(confidence=1.0), model=None).detail == ""


@pytest.mark.parametrize(
    ("left", "right", "close"),
    [
        ("hr", "sr", True),
        ("bs", "sr-Latn", True),
        ("id", "ms", True),
        ("nb", "nn", True),
        ("no", "da", True),
        ("arz", "ary", True),
        ("ar", "apc", True),
        ("zh-Hant", "yue", True),
        ("fa", "prs", True),
        ("pt-BR", "pt-PT", True),
        ("de", "en", False),
        ("uk", "ru", False),
        ("fa", "ar", False),
        ("es", "pt", False),
        ("ca", "es", False),
        ("sv", "nb", False),
    ],
)
def test_which_languages_count_as_one(left, right, close):
    assert is_close(left, right) is close
    assert is_close(right, left) is close


class FakeModel:
    """As fasttext-predict has it: no way to list labels but to ask for all of them."""

    labels = ("__label__swh_Latn", "__label__kin_Latn", "__label__arb_Latn", "__label__zxx_Zxxx")

    def predict(self, text, k=1):
        assert "\n" not in text
        best = self.labels[1] if "muraho" in text else self.labels[0]
        return ((best,), (0.97,)) if k == 1 else (self.labels, (0.25,) * 4)


@pytest.fixture
def fasttext_model(tmp_path, monkeypatch):
    def load_model(path):
        if "broken" in path:
            raise ValueError("has wrong file format!")
        return FakeModel()

    monkeypatch.setitem(sys.modules, "fasttext", types.SimpleNamespace(load_model=load_model))
    path = tmp_path / "model.bin"
    path.write_bytes(b"")
    return str(path)


def test_a_fasttext_model_is_read_by_its_flores_labels(fasttext_model):
    assert load_identifier(fasttext_model).tags == {"sw", "rw", "ar-Latn"}
    assert is_known("ar-Latn", fasttext_model) and not is_known("ar", fasttext_model)
    answer = "muraho, amakuru yawe\nni meza cyane rwose uyu munsi"
    wrong = check_language(chat(answer, language="sw"), check=LanguageCheck(), model=fasttext_model)
    assert wrong.detail == "tagged sw, but answer identified as rw (0.97)"
    assert check_language(chat(answer, language="rw"), check=LanguageCheck(), model=fasttext_model).detail == ""
    assert not check_language(chat(TEXTS["de"], language="de"), check=LanguageCheck(), model=fasttext_model).is_judged


def test_a_model_that_is_missing_or_broken_is_an_error_that_says_what_to_do(fasttext_model, tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no file .*nowhere\.bin; give a fastText model"):
        load_identifier(str(tmp_path / "nowhere.bin"))
    (tmp_path / "broken.bin").write_bytes(b"x")
    with pytest.raises(DataError, match=r"broken\.bin is no fastText model: has wrong file format"):
        load_identifier(str(tmp_path / "broken.bin"))
    monkeypatch.setitem(sys.modules, "fasttext", None)
    with pytest.raises(DataError, match=r"pip install 'polytune\[fasttext\]'"):
        load_identifier(str(tmp_path / "another.bin"))
