import pytest
from conversations import chat

from data.cleaning.characters import SCRIPTS
from data.cleaning.scripts import COMPOSITES, SECOND_SCRIPTS, accepted_scripts, check_script, read_scripts
from data.cleaning_config import ScriptCheck
from data.schema import DataError

ENGLISH = "This is an answer in English, whatever the row says."


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ("ja", "東京タワーは高いです。とても有名です。"),
        ("ko", "한국의 수도는 서울입니다. 大韓民國"),
        ("zh", "北京是中国的首都，有很多人。"),
        ("zh-Hant", "臺北是一座美麗的城市，人口眾多。"),
        ("yue", "佢哋喺香港食飯，好開心呀。"),
        ("sr", "Београд је главни град Србије."),
        ("sr", "Beograd je glavni grad Srbije."),
        ("ur", "اسلام آباد پاکستان کا دارالحکومت ہے۔"),
        ("ks-Deva", "कश्मीर छु अख खूबसूरत जाय।"),
        ("ar-Latn", "almadinat jamilat jiddan wakabira"),
        ("th", "กรุงเทพมหานครเป็นเมืองหลวง"),
        ("am", "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።"),
        ("nqo", "ߒߞߏ ߞߊ߲ ߞߊ߬ߙߊ߲ ߢߌ߬ߣߌ߲߬"),
        ("sat", "ᱥᱟᱱᱛᱟᱲᱤ ᱯᱟᱹᱨᱥᱤ ᱫᱚ ᱵᱮᱥ"),
        ("pt-BR", "Brasília é a capital do Brasil, não o Rio."),
    ],
)
def test_a_text_in_its_own_script_is_kept_and_one_in_another_is_not(tag, text):
    kept, dropped = (check_script(chat(each, language=tag), check=ScriptCheck()) for each in (text, "Жук " * 30))
    assert (kept.detail, kept.is_judged) == ("", True)
    if tag != "sr":
        assert dropped.detail.startswith(
            "0% of 30 words (characters, without spaces) are "
        ) and dropped.detail.endswith("100% are Cyrl")


@pytest.mark.parametrize("tag", ["hi", "ja", "ko", "zh-Hant", "ru", "th", "am", "ka"])
def test_an_answer_left_in_english_is_found(tag):
    assert "100% are Latn" in check_script(chat(ENGLISH, language=tag), check=ScriptCheck()).detail


def test_code_and_names_in_latin_letters_do_not_count_against_a_chinese_answer():
    code = "请看下面的代码，它会打印一句话：\n```python\nprint('hello, world')\nfor item in items: pass\n```"
    assert check_script(chat(code, language="zh"), check=ScriptCheck()).detail == ""
    assert check_script(chat("我在用Python写一个小程序，很好用。", language="zh"), check=ScriptCheck()).detail == ""
    # A fifth of the letters, but more than half of what a reader counts.
    assert check_script(chat("UX的全名是User Experience", language="zh"), check=ScriptCheck()).detail == ""


def test_two_names_in_latin_letters_do_not_make_a_chinese_answer_danish():
    """More than a third of its letters are Latin, because a word has many."""
    names = "几年后，一位名叫 Jeremiah Horrocks 的天文学家观测到了这一次难得的金星凌日。"
    assert "7% of 28 words" in check_script(chat(names, language="da"), check=ScriptCheck()).detail


@pytest.mark.parametrize("tag", ["orv", "acm", "lfn"])
def test_a_language_whose_script_cldr_does_not_know_is_not_taken_for_latin(tag):
    assert accepted_scripts(tag) == ()
    finding = check_script(chat("се бо не хощемъ мира ти дати нынѣ", language=tag), check=ScriptCheck())
    assert (finding.detail, finding.is_judged) == ("", False)


def test_short_texts_excepted_tasks_and_unknown_scripts_are_not_judged():
    assert not check_script(chat("OK, 42!", language="hi"), check=ScriptCheck()).is_judged
    excepted = ScriptCheck(except_tasks=("transliteration",))
    assert not check_script(chat(ENGLISH, language="hi", task="transliteration"), check=excepted).is_judged
    assert not check_script(chat(ENGLISH, language="en-Shaw"), check=ScriptCheck()).is_judged


def test_the_part_and_the_share_that_are_judged_are_the_recipes():
    mixed = chat("йогурт " + "apple " * 3, prompt=ENGLISH, language="ru")
    assert check_script(mixed, check=ScriptCheck(min_share=0.25)).detail == ""
    assert check_script(mixed, check=ScriptCheck(min_share=0.26)).detail.startswith(
        "25% of 4 words (characters, without spaces) are Cyrl, fewer than 26%"
    )
    assert check_script(mixed, check=ScriptCheck(part="prompt")).detail.startswith("0% of")


def test_a_recipe_adds_scripts_by_any_spelling_of_a_tag():
    check = ScriptCheck(scripts=read_scripts({"hin_Deva": ("Latn",), "ja": ("Hrkt",)}))
    assert check.scripts == {"hi": ("Latn",), "ja": ("Hira", "Kana")}
    assert check_script(chat(ENGLISH, language="hi"), check=check).detail == ""
    with pytest.raises(DataError, match=r"script_mismatch\.scripts\.hi: 'Latin' is no script code"):
        read_scripts({"hi": ("Latin",)})


def test_tables_name_scripts_that_can_be_counted():
    parts = {part for table in (COMPOSITES, SECOND_SCRIPTS) for codes in table.values() for part in codes}
    assert parts <= {*SCRIPTS[1:]}
