from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.scoring import apply_filters, choose_options, extract_number, is_exact_match, is_number_match

NUMBERS = [
    ("The answer is 18.", "18"),
    ("উত্তর হল ১১।", "11"),  # Bengali digits: an ASCII-digit pattern finds nothing here
    ("الجواب هو ٣٤٫٥", "34.5"),  # Arabic-Indic digits and decimal separator
    ("۱۲۳۴", "1234"),  # Persian
    ("उत्तर १२३ है", "123"),  # Devanagari
    ("คำตอบคือ ๔๒", "42"),  # Thai
    ("సమాధానం ౧౦౮", "108"),  # Telugu
    ("답은 1,234,567원입니다", "1234567"),
    ("答えは１８です。", "18"),  # full-width
    ("答えは１，２３４です。", "1234"),
    ("मूल्य १,००,००० रुपये", "100000"),  # lakh grouping
    ("Das sind 1.234,50 Euro.", "1234.50"),
    ("Das sind 1.234 Euro.", "1234"),
    ("It is 1,234.50 dollars", "1234.50"),
    ("10\u202f000 euros", "10000"),
    ("10’000 Franken", "10000"),
    ("3,5 кг", "3.5"),
    ("0.125", "0.125"),
    ("0,5", "0.5"),
    ("1234.567", "1234.567"),
    ("x = 3 + 4 = 7", "7"),
    ("5-3", "3"),
    ("COVID-19", "19"),
    ("it falls to −5", "-5"),
    ("答案是-5", "-5"),
    ("1,2,3", "3"),
    ("12.5.2024", "2024"),
    ("100%", "100"),
    ("$2...", "2"),
    ("007", "7"),
    ("1,000.", "1000"),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers_are_found_in_every_script(text, value):
    assert extract_number(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "no number", "十八", "x²", "Ⅻ", "½"])
def test_what_is_no_decimal_number_is_none(text):
    assert extract_number(text) is None


@given(st.integers(0, 10**12), st.sampled_from("0٠۰०০๐౦０၀០"))
def test_digits_of_any_script_mean_the_same(value, zero):
    written = "".join(chr(ord(zero) + int(digit)) for digit in str(value))
    assert extract_number(f"… {written}.") == value


@given(st.integers(0, 10**15), st.sampled_from([",", ".", "٬", "'", "\u00a0"]))
def test_grouped_thousands_are_whole_numbers(value, mark):
    assert extract_number(f"{value:,}".replace(",", mark)) == value


def test_number_match_compares_values_not_spelling():
    assert is_number_match("so 18.00", "18")
    assert is_number_match("২,১২৫", "2,125")
    assert not is_number_match("none", "none")
    assert not is_number_match("18 or 19", "18")


def test_filters_apply_in_order_and_keep_inner_space():
    assert apply_filters(" a  b\n", ("strip",)) == "a  b"
    assert apply_filters("e\u0301 ", ("nfc", "strip")) == "é"
    assert not is_exact_match("e\u0301", "é")


def test_acc_norm_counts_characters_and_acc_bytes_counts_bytes():
    # Chinese and ASCII of equal meaning: 2 characters are 6 bytes. Sums favour neither way alike.
    options, log_likelihoods = ["政治", "politics"], [-6.0, -9.0]
    chosen = choose_options(log_likelihoods, options, [3, 9])
    assert chosen.acc == 0  # -6 > -9
    assert chosen.acc_norm == 1  # -6/2 = -3 < -9/8
    assert chosen.acc_bytes == 0  # -6/6 = -1 > -9/8
    assert chosen.acc_tokens == 1  # -6/3 = -2 < -9/9


def test_ties_go_to_the_first_option():
    assert choose_options([-1.0, -1.0, -1.0], ["a", "b", "c"], [1, 1, 1]) == (0, 0, 0, 0)
    assert choose_options([-2.0, -1.0, -1.0], ["a", "b", "c"], [1, 1, 1]) == (1, 1, 1, 1)
