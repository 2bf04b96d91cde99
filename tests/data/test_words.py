"""Words are counted as readers of each script see them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.words import count_words, separates_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("Which day comes after Monday?", 5),
        ("don't l’homme 3.14 e.g. x_1", 5),
        ("well-known — 😀 !", 2),
        ("one\ntwo\tthree\u00a0four\u3000five", 5),
        ("Übergröße naı\u0308ve", 2),
        ("नमस्ते दुनिया यह हिन्दी है", 5),  # Python's \w+ gives 8 for four such words
        ("বাংলা ভাষা", 2),
        ("هٰذَا كِتَابٌ", 2),  # vowelled: \w+ ends at every vowel sign
        ("می‌خواهم بروم", 2),  # a zero-width non-joiner inside a word
        ("ሰላም፡ለዓለም", 2),  # Ethiopic wordspace
        ("한국어 문장", 2),
        ("\u0301 \u200d \u200c", 0),  # marks and joiners alone are no words
        ("...'''", 0),
    ],
)
def test_a_vowel_sign_does_not_end_a_word(text, words):
    assert count_words(text) == words


@given(st.lists(st.text(alphabet="aßж한नि\u093f\u0301", min_size=1).map(lambda text: "क" + text), max_size=20))
def test_words_of_letters_and_marks_between_spaces_are_all_counted(words):
    assert count_words(" ".join(words)) == len(words)


@given(st.text())
def test_any_text_can_be_counted(text):
    assert 0 <= count_words(text) <= len(text)


@pytest.mark.parametrize(
    ("tag", "spaces"),
    [("en", True), ("ko", True), ("vi", True), ("hi", True), ("am", True), ("zh", False), ("zh-Hant", False),
     ("yue", False), ("ja", False), ("th", False), ("lo", False), ("km", False), ("my", False), ("bo", False),
     ("shn", False), ("ja-Latn", True), ("nonsense", True)],
)  # fmt: skip
def test_which_scripts_put_spaces_between_words(tag, spaces):
    assert separates_words(tag) is spaces
