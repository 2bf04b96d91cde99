import json
import pickle

import pytest
from conversations import chat
from hypothesis import given
from hypothesis import strategies as st

from data.cleaning.contamination import build_index, find_contamination
from data.cleaning.units import read_units
from data.cleaning_config import Decontamination, EvaluationSet
from data.schema import Conversation, DataError, Turn

# Questions written for this test.
QUESTIONS = {
    "en": "A farmer has seventeen sheep and sells all but nine of them; how many sheep are left in the field?",
    "hi": "एक किसान के पास सत्रह भेड़ें हैं और वह नौ को छोड़कर सभी बेच देता है; अब खेत में कितनी भेड़ें बची हैं?",
    "ar": "لدى مزارع سبعة عشر خروفا وباع جميعها ما عدا تسعة منها، فكم خروفا بقي في الحقل بعد ذلك؟",
    "th": "ชาวนามีแกะสิบเจ็ดตัวและขายไปทั้งหมดยกเว้นเก้าตัว ตอนนี้เหลือแกะในทุ่งกี่ตัว",
    "zh": "一个农夫有十七只羊，除了九只以外全部卖掉了，请问现在田里还剩下多少只羊呢？",
}


def write_set(tmp_path, rows, name="eval.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_index(tmp_path, rows, *, fields=(), **settings):
    write_set(tmp_path, rows)
    sets = (EvaluationSet(path="eval.jsonl", name="sheep", fields=fields),)
    return build_index(Decontamination(sets=sets, **settings), root=str(tmp_path))


@pytest.fixture
def index(tmp_path):
    return make_index(tmp_path, [{"question": text, "answer": "9"} for text in QUESTIONS.values()])


@pytest.mark.parametrize("language", QUESTIONS)
def test_a_planted_question_is_found_in_every_script_and_named_by_file_and_row(index, language):
    line = list(QUESTIONS).index(language) + 1
    planted = chat("9.", prompt=f"Solve!  {QUESTIONS[language].upper()} Thanks", language=language)
    detail = find_contamination(planted, index=index).detail
    assert detail == f"holds 100% of evaluation text sheep (eval.jsonl:{line}, question)"


@pytest.mark.parametrize("place", ["system", "user", "assistant", "thoughts"])
def test_an_evaluation_text_is_found_in_any_turn(index, place):
    turns = {"system": Turn("system", "s"), "user": Turn("user", "u"), "assistant": Turn("assistant", "a")}
    if place == "thoughts":
        turns["assistant"] = Turn("assistant", "a", thoughts=QUESTIONS["en"])
    else:
        turns[place] = Turn(place, QUESTIONS["en"])
    conversation = Conversation(turns=tuple(turns.values()), language="en", source="s")
    assert find_contamination(conversation, index=index).detail


def test_a_chinese_row_that_holds_an_english_question_is_found(index):
    mixed = chat("好的，" + "这是一个问题，我们来看一看。" * 5 + QUESTIONS["en"], language="zh")
    assert "eval.jsonl:1" in find_contamination(mixed, index=index).detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        # Words 1 to 9 of the 20: two n-grams that cover nine words.
        ("A farmer has seventeen sheep and sells all but", ""),
        # 1 to 10: three n-grams that cover ten.
        ("a farmer has seventeen sheep and sells all but nine", "holds 50% of evaluation text"),
        # A word exchanged in the middle leaves words 1-9 and 11-20.
        (QUESTIONS["en"].replace("nine", "eight"), "holds 95% of evaluation text"),
        # Exchanged every seven words: no run of eight is left.
        (QUESTIONS["en"].replace("and", "or").replace("of them", "from those").replace("seventeen", "ten"), ""),
    ],
)
def test_the_share_of_a_text_that_is_covered_decides(index, text, detail):
    found = find_contamination(chat(text), index=index).detail
    assert found.startswith(detail) if detail else found == ""


def test_one_ngram_is_enough_where_the_recipe_says_so(tmp_path):
    """GPT-3's rule: any one 13-gram."""
    index = make_index(tmp_path, [{"question": QUESTIONS["en"]}], words=13, min_covered=0)
    words = QUESTIONS["en"].split()
    assert find_contamination(chat(" ".join(words[3:16])), index=index).detail
    assert not find_contamination(chat(" ".join(words[3:15])), index=index).detail


def test_ngrams_do_not_run_from_one_turn_or_field_into_the_next(tmp_path):
    index = make_index(tmp_path, [{"a": "one two three four five six seven eight"}])
    assert not find_contamination(chat("five six seven eight", prompt="one two three four"), index=index).detail


def test_fields_choose_what_is_looked_for_and_lists_are_walked(tmp_path):
    rows = [
        {"question": QUESTIONS["en"], "choices": [{"text": "ten words that nobody else would ever write like this"}]}
    ]
    choices = make_index(tmp_path, rows, fields=("choices",))
    assert not find_contamination(chat(QUESTIONS["en"]), index=choices).detail
    found = find_contamination(chat("Ten words that nobody else would ever write like this."), index=choices)
    assert found.detail.endswith("sheep (eval.jsonl:1, choices)")
    with pytest.raises(DataError, match="no row has a field 'qestion'; the fields are choices, question"):
        make_index(tmp_path, rows, fields=("qestion",))


def test_texts_too_short_to_be_looked_for_are_said_and_a_set_of_nothing_else_is_refused(tmp_path):
    index = make_index(tmp_path, [{"q": QUESTIONS["en"], "a": "nine"}, {"q": QUESTIONS["zh"], "a": "九"}])
    assert index.notes == ("evaluation set 'sheep': 2 of 4 texts are shorter than an n-gram and cannot be looked for",)
    with pytest.raises(DataError, match=r"none of its 1 texts has 8 words \(or 20 characters"):
        make_index(tmp_path, [{"q": "short"}])


def test_a_row_that_cannot_be_read_stops_the_run_unless_it_may_be_passed_over(tmp_path):
    path = write_set(tmp_path, [{"q": QUESTIONS["en"]}])
    path.write_text(path.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"eval\.jsonl:2: not JSON"):
        build_index(Decontamination(sets=(EvaluationSet(path="eval.jsonl"),)), root=str(tmp_path))
    skipping = Decontamination(sets=(EvaluationSet(path="eval.jsonl", bad_rows="skip"),))
    (note,) = build_index(skipping, root=str(tmp_path)).notes
    assert note.startswith(
        "evaluation set 'eval.jsonl': 1 rows that cannot be read are passed over, the first eval.jsonl:2"
    )
    with pytest.raises(DataError, match="no file matches"):
        build_index(Decontamination(sets=(EvaluationSet(path="none.jsonl"),)), root=str(tmp_path))


def test_equal_texts_are_indexed_once_and_the_index_pickles(tmp_path):
    once = make_index(tmp_path, [{"q": QUESTIONS["en"]}])
    twice = make_index(tmp_path, [{"q": QUESTIONS["en"]}, {"q": QUESTIONS["en"].upper()}])
    assert len(twice.places) == len(once.places) == 1
    again = pickle.loads(pickle.dumps(twice))
    assert find_contamination(chat(QUESTIONS["en"]), index=again) == find_contamination(
        chat(QUESTIONS["en"]), index=twice
    )


@given(st.lists(st.sampled_from("abc"), min_size=3, max_size=14), st.lists(st.sampled_from("abc"), max_size=14))
def test_the_cover_is_that_of_a_plain_search(tmp_path_factory, evaluation, training):
    length = 3
    index = make_index(tmp_path_factory.mktemp("sets"), [{"q": " ".join(evaluation)}], words=length, min_covered=0.4)
    grams = {tuple(training[at : at + length]) for at in range(len(training) - length + 1)}
    covered = {
        at + offset
        for at in range(len(evaluation) - length + 1)
        if tuple(evaluation[at : at + length]) in grams
        for offset in range(length)
    }
    expected = len(covered) / len(evaluation)
    detail = find_contamination(chat(" ".join(training) or "-"), index=index).detail
    assert bool(detail) is (bool(covered) and expected >= 0.4)
    assert not detail or detail.startswith(f"holds {expected:.0%} of")


def test_character_ngrams_are_long_enough_to_mean_something():
    for language in ("th", "zh"):
        units = read_units(QUESTIONS[language])
        assert not units.is_spaced and len(units.hashes_U) >= 20
