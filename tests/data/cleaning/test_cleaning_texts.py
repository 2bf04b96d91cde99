import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.cleaning.characters import MARK, SEPARATOR, SINGLE, WORD, count_scripts, unit_table
from data.cleaning.texts import fold, leave_out_code, read_part
from data.cleaning.units import hash_character_ngrams, hash_ngrams, read_units
from data.schema import TEXT_ROLE, Conversation, Turn


def units_of(text: str) -> int:
    return len(read_units(text).hashes_U)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Don’t  STOP", "don't stop"),
        ("ＡＩ１２", "ai12"),
        ("cafe\u0301", "café"),
        ("İSTANBUL", "istanbul"),
        ("ISPARTA", "ısparta"),
        ("بصِفَتِي نموذجًا", "بصفتي نموذجا"),
        ("ﻻ", "لا"),
        ("می‌توانم", "میتوانم"),
        ("كـــتاب", "كتاب"),
        ("Stra\u00adße", "STRASSE"),
        ("ひらｶﾞな", "ひらガな"),
        ("a\u200b\tb\u00a0c", "a b c"),
    ],
)
def test_spelling_variants_fold_to_one_text(left, right):
    assert fold(left) == fold(right)


@pytest.mark.parametrize(("left", "right"), [("ş", "s"), ("é", "e"), ("ی", "ي"), ("中", "國"), ("mąż", "maz")])
def test_letters_that_make_another_word_stay_apart(left, right):
    assert fold(left) != fold(right)


@given(st.text())
def test_folding_twice_changes_nothing(text):
    assert fold(fold(text)) == fold(text)


def test_parts_are_the_turns_of_their_roles_and_a_text_is_an_answer():
    turns = (
        Turn("system", "s"),
        Turn("user", " u1 "),
        Turn("assistant", "a1\n"),
        Turn("user", "u2"),
        Turn("tool", "t"),
    )
    chat = Conversation(turns=turns, language="en", source="x")
    assert read_part(chat, "prompt") == "u1\nu2"
    assert read_part(chat, "answer") == "a1"
    assert read_part(chat, "conversation") == "u1\na1\nu2"
    text = Conversation(turns=(Turn(TEXT_ROLE, "plain"),), language="en", source="x")
    assert (read_part(text, "answer"), read_part(text, "prompt")) == ("plain", "")


def test_code_and_addresses_are_left_out_even_where_a_fence_never_ends():
    assert leave_out_code("a ```x\ny``` b `z` c https://e.org/q d").split() == ["a", "b", "c", "d"]
    assert leave_out_code("a ```never closed").split() == ["a"]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Héllo, 12!", {"Latn": 5}),
        ("東京タワーへ行こう", {"Hani": 3, "Kana": 2, "Hira": 3}),
        ("한국 漢字", {"Hang": 2, "Hani": 2}),
        ("мир ꯃꯤ ⵜⵉ ߒߞߏ ᱥᱟ", {"Cyrl": 3, "Mtei": 1, "Tfng": 2, "Nkoo": 3, "Olck": 2}),
        ("𝐀𝐁 µ ʰ ① ٣", {}),
        ("", {}),
    ],
)
def test_letters_are_counted_by_script(text, counts):
    assert count_scripts(text) == {script: count for script, count in counts.items() if count}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...  !", 0),
        ("one two,three", 3),
        ("हिन्दी भाषा", 2),
        ("தமிழ் மொழி", 2),
        ("今年はabc 12", 5),
        ("ไทย", 3),
        ("น้ำ", 2),
        ("བོད་སྐད", 2),
        ("\u0301abc", 1),
        ("한국어 좋다", 2),
    ],
)
def test_units_are_words_with_their_vowel_signs_or_single_characters(text, count):
    assert units_of(text) == count


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("two words", True),
        ("今年は", False),
        ("ไทย", False),
        ("ကမ္ဘာ", False),
        ("한국어", True),
        ("कमल", True),
        ("", True),
    ],
)
def test_scripts_without_spaces_are_known(text, spaced):
    assert read_units(text).is_spaced is spaced


def test_hashes_are_the_same_in_every_process_and_version():
    assert read_units("the cat 猫").hashes_U.tolist() == PINNED


PINNED = [4604369466024044213, 930802961462314021, 942890546274161989]


@given(st.lists(st.text("abcกขสวัสดี猫कि", min_size=1, max_size=4), max_size=12))
def test_a_unit_has_its_hash_wherever_it_stands(words):
    joined = read_units(" ".join(words)).hashes_U.tolist()
    assert joined == [value for word in words for value in read_units(word).hashes_U.tolist()]


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 6))
def test_equal_ngrams_have_equal_hashes_and_others_do_not(numbers, length):
    hashes = hash_ngrams(np.array(numbers, np.uint64), length).tolist()
    runs = [tuple(numbers[start : start + length]) for start in range(len(numbers) - length + 1)]
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs))
    assert len(set(zip(hashes, runs, strict=True))) == len(set(runs))


def test_character_ngrams_are_distinct_and_a_short_text_is_one():
    assert len(hash_character_ngrams("abcabc", 3)) == 3
    assert len(hash_character_ngrams("ab", 5)) == 1
    assert len(np.intersect1d(hash_character_ngrams("xabcdy", 4), hash_character_ngrams("abcd", 4))) == 1


def test_the_table_of_units_has_all_four_kinds():
    table = unit_table()
    assert [table[ord(sign)] for sign in " a猫"] == [SEPARATOR, WORD, SINGLE]
    assert table[0x301] == MARK
