import pytest
from conversations import chat

from data.cleaning.phrases import find_phrase, load_phrases, read_phrase_table, shipped_phrases
from data.cleaning.texts import fold
from data.cleaning_config import PhraseCheck
from data.phrasebook import phrase_languages
from data.schema import Conversation, DataError, Turn


def detail(answer: str, language: str = "en") -> str:
    return find_phrase(chat(answer, language=language), table=shipped_phrases()).detail


def test_every_language_of_the_phrase_book_has_refusals_too():
    assert set(shipped_phrases()) == set(phrase_languages())
    for tag, phrases in shipped_phrases().items():
        assert len(phrases.opening) >= 4 and len(phrases.within) >= 4, tag


@pytest.mark.parametrize("tag", phrase_languages())
def test_every_shipped_phrase_is_found_where_it_stands(tag):
    for phrase in shipped_phrases()[tag].opening:
        assert detail(f"“{phrase}, ...", tag), phrase
    for phrase in shipped_phrases()[tag].within:
        assert detail(f"xyz. {phrase}, ...", tag), phrase


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("en", "I’m sorry, but I can’t help with that."),
        ("en", "Well — AS AN AI\nLANGUAGE MODEL, I have no opinion."),
        ("fr", "**Je suis désolé, mais je ne peux pas répondre.**"),
        ("fr", "Bonjour ! En tant que mode\u0300le de langage, je n'ai pas d'avis."),
        ("de", "Es tut mir leid, aber ich kann dabei nicht helfen."),
        ("ar", "عذرًا، لا يمكنني المساعدة."),
        ("fa", "متأسفم، اما نمی\u200cتوانم کمک کنم."),
        ("fa", "متأسفم، اما نمیتوانم کمک کنم."),
        ("tr", "BİR YAPAY ZEKA DİL MODELİ OLARAK duygularım yok."),
        ("ja", "申し訳ありませんが、お手伝いできません。"),
        ("zh-Hant", "很抱歉，我無法回答這個問題。"),
        ("zh", "作为一个ＡＩ语言模型，我没有感情。"),
        ("ko", "저는 AI 언어 모델이라서 감정이 없습니다."),
        ("th", "ขออภัย ฉันไม่สามารถช่วยเรื่องนี้ได้"),
        ("hi", "एक एआई भाषा मॉडल के रूप में, मेरी कोई राय नहीं है।"),
        ("pt-BR", "Desculpe, mas não posso ajudar."),
        ("sw", "As an AI language model, siwezi kusema."),
    ],
)
def test_refusals_are_found_however_they_are_typed(language, answer):
    assert detail(answer, language)


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("en", "She was an AI model in the film."),
        ("en", "As an aid to memory, write it down."),
        ("en", "He said: I'm sorry, but I can't stay. Then he left."),
        ("en", "BERT is used as a language model in many systems."),
        ("de", "Als Kind spielte ich oft am Fluss."),
        ("de", "Als KI bezeichnet man lernende Maschinen."),
        ("id", "Sebagai air minum, sumber itu sangat bersih."),
        ("sw", "Kama aina nyingine za samaki, huyu anaishi baharini."),
        ("cs", "Technologie jako umělá inteligence mění svět."),
        ("zh", "作为人工智能的一个分支，机器学习很重要。"),
        ("ja", "GPTは言語モデルとして知られています。"),
        ("vi", "GPT là một mô hình ngôn ngữ lớn."),
    ],
)
def test_a_text_about_models_or_with_a_word_that_begins_alike_is_kept(language, answer):
    assert detail(answer, language) == ""


def test_only_turns_of_the_assistant_are_searched_and_all_of_them():
    asked = chat("Sure.", prompt="Why do you say 'as an AI language model'?")
    assert find_phrase(asked, table=shipped_phrases()).detail == ""
    first = Conversation(
        turns=(Turn("user", "a"), Turn("assistant", "As an AI, no."), Turn("user", "b"), Turn("assistant", "Yes.")),
        language="en",
        source="s",
    )
    assert find_phrase(first, table=shipped_phrases()).detail == "answer begins with 'as an ai' (en)"


def test_a_language_without_phrases_is_searched_for_english_ones_and_counted_as_not_judged():
    kept = find_phrase(chat("Sawubona mhlaba", language="zu"), table=shipped_phrases())
    assert (kept.detail, kept.is_judged) == ("", False)
    assert detail("As an AI language model, angikwazi.", "zu")


def test_a_file_of_the_users_adds_phrases_or_stands_alone(tmp_path):
    (tmp_path / "own.yaml").write_text("zul: {opening: ['Ngiyaxolisa, angikwazi']}\nen: {within: [lorem ipsum]}\n")
    added = load_phrases(PhraseCheck(file="own.yaml"), root=str(tmp_path))
    alone = load_phrases(PhraseCheck(file="own.yaml", shipped=False), root=str(tmp_path))
    assert set(alone) == {"zu", "en"} and len(added) == 37
    assert find_phrase(chat("Ngiyaxolisa, angikwazi ukusiza.", language="zu"), table=alone).detail
    assert find_phrase(chat("Lorem Ipsum dolor"), table=added).detail
    assert find_phrase(chat("As an AI language model, no."), table=added).detail
    assert not find_phrase(chat("As an AI language model, no."), table=alone).detail


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("en: [a, b]", r"own.yaml: .*the form is `sw: \{opening"),
        ("en: {openings: [abc]}", "unknown field `openings`"),
        ("en: {opening: [abc", "own.yaml: "),
        ("english: {opening: [abc]}", "'english' is not a language tag"),
        ("en: {within: [a]}", "the phrase 'a' would be found in any text"),
    ],
)
def test_a_file_that_is_no_table_of_phrases_is_refused_by_name(text, message):
    with pytest.raises(DataError, match=message):
        read_phrase_table(text, place="own.yaml")


def test_a_missing_file_is_refused_with_the_recipes_key(tmp_path):
    with pytest.raises(DataError, match=r"data\.cleaning\.phrases\.file: cannot read"):
        load_phrases(PhraseCheck(file="none.yaml"), root=str(tmp_path))


def test_shipped_phrases_are_long_enough_to_mean_something():
    for tag, phrases in shipped_phrases().items():
        for phrase in (*phrases.opening, *phrases.within):
            assert fold(phrase) == phrase
            assert len(phrase) >= (4 if tag in ("ja", "ko", "zh", "he", "hy") else 5), (tag, phrase)
