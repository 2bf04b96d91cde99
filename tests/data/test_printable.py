"""Text of unknown origin cannot command a terminal, nor turn what stands beside it around."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from data.printable import isolate, make_printable


def test_controls_are_shown_by_their_signs():
    assert make_printable("a\x00\x1b[31m\r\x7f\x9b\n\tb") == "a␀␛[31m␍␡⟨9B⟩\n\tb"
    assert make_printable("x\u202e\u2066\u2069\u2028\ud800") == "x⟨RLO⟩⟨LRI⟩⟨PDI⟩⟨LS⟩⟨D800⟩"


def test_marks_and_joiners_belong_to_writing_and_stay():
    text = "می‌خواهم e\u0301 👩‍👧 \u200e\u200f\u200b"
    assert make_printable(text) == text


def test_a_long_text_is_cut_and_the_rest_counted():
    assert make_printable("x" * 100_000, limit=10) == "xxxxxxxxxx … (99,990 more characters)"
    assert make_printable("x" * 10, limit=10) == "x" * 10


@given(st.text(alphabet=st.characters(codec=None)))
def test_nothing_that_could_command_is_left(text):
    shown = make_printable(text)
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"]
    assert not [
        c
        for c in shown
        if unicodedata.bidirectional(c) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    ]
    shown.encode("utf-8")


def test_a_right_to_left_name_in_a_table_does_not_turn_the_row_around():
    assert isolate("العربية") == "العربية\u200e" and isolate("Kiswahili") == "Kiswahili"
