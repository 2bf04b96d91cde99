import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import datasketch
import numpy as np
import pytest
from conversations import chat
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cleaning.duplicates import EMPTY, choose_bands, find_duplicates, signature, signature_size
from data.cleaning.texts import fold
from data.cleaning_config import CleaningConfig, ExactDuplicates, NearDuplicates
from data.schema import Conversation, DataError, Turn

ROOT = Path(__file__).resolve().parents[3]
EXACT = CleaningConfig(exact_duplicates=ExactDuplicates())
NEAR = CleaningConfig(near_duplicates=NearDuplicates())
BOTH = CleaningConfig(exact_duplicates=ExactDuplicates(), near_duplicates=NearDuplicates())
LETTERS = {
    "en": "abcdefghijklmnopqrstuvwxyz",
    "ar": "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "th": "กขคงจฉชซญดตถทนบปผพฟมยรลวสหอ",
    "zh": "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出",
    "hi": "कखगघचछजझटठडढतथदधनपफबभमयरलवशषसह",
    "vi": "aăâbcdđeêghiklmnoôơpqrstuưvxyáàảãạ",
}


def stack(config: CleaningConfig, rows: list[Conversation]) -> np.ndarray:
    joined = b"".join(signature(config, row) for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(len(rows), signature_size(config))


def search(config: CleaningConfig, rows: list[Conversation]) -> list[tuple[int, int, str]]:
    languages = sorted({row.language for row in rows})
    sources = sorted({row.source for row in rows})
    found = find_duplicates(
        config,
        stack(config, rows),
        np.array([languages.index(row.language) for row in rows]),
        np.array([sources.index(row.source) for row in rows]),
    )
    places = range(len(found.dropped_D))
    return [(int(found.dropped_D[at]), int(found.kept_D[at]), found.predicate(at)) for at in places]


def write(language: str, characters: int, generator: random.Random) -> str:
    """A text of made-up words: spaces where the script has them."""
    words, space = [], "" if language in ("th", "zh") else " "
    while sum(map(len, words)) < characters:
        words.append("".join(generator.choices(LETTERS[language], k=generator.randint(2, 7))))
    return space.join(words)


def garble(text: str, edits: int, generator: random.Random) -> str:
    """The text with so many characters replaced by a digit."""
    letters = list(text)
    for place in generator.sample(range(len(letters)), edits):
        letters[place] = generator.choice("0123456789")
    return "".join(letters)


def test_signatures_have_the_size_that_the_config_says():
    assert [signature_size(config) for config in (CleaningConfig(), EXACT, NEAR, BOTH)] == [0, 8, 512, 520]
    for config in (CleaningConfig(), EXACT, NEAR, BOTH):
        for text in ("", "short", "long " * 100):
            assert len(signature(config, chat(text))) == signature_size(config)


def test_a_signature_is_the_same_in_another_process():
    code = (
        "from data.cleaning.duplicates import signature\n"
        "from data.cleaning_config import *\n"
        "from data.schema import *\n"
        "config = CleaningConfig(exact_duplicates=ExactDuplicates(), near_duplicates=NearDuplicates(permutations=16))\n"
        "turns = (Turn('user', '猫 ' * 100), Turn('assistant', 'กา'))\n"
        "print(signature(config, Conversation(turns=turns, language='en', source='s')).hex())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout
        for env in ({"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT)}, {"PYTHONHASHSEED": "2", "PYTHONPATH": str(ROOT)})
    )
    assert first == second and len(first.strip()) == 2 * (8 + 4 * 16)


def test_the_first_of_equal_rows_is_kept():
    rows = [chat("a"), chat("b"), chat(" a\n"), chat("c"), chat("b"), chat("a")]
    assert search(EXACT, rows) == [
        (2, 0, "exact_duplicates"), (4, 1, "exact_duplicates"), (5, 0, "exact_duplicates"),
    ]  # fmt: skip


def test_composed_and_decomposed_spellings_are_equal_and_case_is_not():
    assert search(EXACT, [chat("café"), chat("cafe\u0301"), chat("Café")]) == [(1, 0, "exact_duplicates")]


def test_rows_that_differ_in_a_role_a_thought_or_a_tool_are_not_equal():
    turns = (Turn("user", "a"), Turn("assistant", "b"))
    variants = [
        turns,
        (Turn("system", "a"), Turn("assistant", "b")),
        (Turn("user", "a"), Turn("assistant", "b", thoughts="hm")),
        (Turn("user", "a\nb"),),
        (Turn("user", "a"), Turn("assistant", "b", tool_calls="[]")),
    ]
    rows = [Conversation(turns=each, language="en", source="s") for each in variants]
    rows.append(Conversation(turns=turns, language="en", source="s", tools="[{}]"))
    rows.append(Conversation(turns=(Turn("user", "a"), Turn("assistant", "b", train=True)), language="en", source="s"))
    assert search(EXACT, rows) == [(6, 0, "exact_duplicates")]


def test_the_scope_is_the_language_unless_told_otherwise():
    rows = [chat("42", language="en"), chat("42", language="sw"), chat("42", language="en", source="t")]

    def dropped(scope):
        return [row[0] for row in search(CleaningConfig(exact_duplicates=ExactDuplicates(scope=scope)), rows)]

    assert {scope: dropped(scope) for scope in ("language", "source", "all")} == {
        "language": [2], "source": [1], "all": [1, 2],
    }  # fmt: skip


def test_one_part_can_be_compared_alone():
    rows = [chat("a", prompt="q"), chat("b", prompt="q"), chat("a", prompt="r")]
    prompts = CleaningConfig(exact_duplicates=ExactDuplicates(part="prompt"))
    answers = CleaningConfig(exact_duplicates=ExactDuplicates(part="answer"))
    assert [search(config, rows)[0][:2] for config in (prompts, answers)] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("language", LETTERS)
def test_planted_near_duplicates_are_found_in_every_script(language):
    """60 originals of 300 characters, each with 4 edits (similarity about 0.87) and 60 with 40 (about 0.33)."""
    generator = random.Random(language)
    originals = [write(language, 300, generator) for _ in range(60)]
    near = [garble(text, 4, generator) for text in originals]
    far = [garble(text, 40, generator) for text in originals]
    rows = [chat(text, language=language) for text in (*originals, *near, *far)]
    found = search(NEAR, rows)
    assert all(dropped - kept == 60 and kept < 60 for dropped, kept, _ in found)  # none of the far ones: precision 1
    assert len(found) >= 57  # recall 0.95
    scores = [_estimate(rows[place], rows[place + 60]) for place in range(60)]
    others = [_estimate(rows[place], rows[place + 120]) for place in range(60)]
    assert min(scores) > max(others)  # the area under the curve is 1


def _estimate(left: Conversation, right: Conversation) -> float:
    values = [np.frombuffer(signature(NEAR, row), "<u4") for row in (left, right)]
    return float(np.mean(values[0] == values[1]))


def test_case_spacing_width_and_vowel_signs_do_not_hide_a_near_duplicate():
    text = (
        "The little boat left the harbour early in the morning, with 12 men, and came back with a lot of fish for all."
    )
    rows = [chat(text), chat(text.upper().replace(" ", "  ").replace("12", "１２"))]
    assert search(NEAR, rows) == [(1, 0, "near_duplicates")]
    arabic = (
        "خرج القارب الصغير من الميناء في الصباح الباكر وعاد في المساء ومعه سمك كثير للجميع في القرية القريبة من البحر"
    )
    marked = arabic.replace("خرج", "خَرَجَ").replace("القارب", "القارِبُ").replace("ا", "ا\u064e")
    assert search(NEAR, [chat(arabic, language="ar"), chat(marked, language="ar")]) == [(1, 0, "near_duplicates")]


def test_questions_of_one_template_are_no_near_duplicates_while_short():
    rows = [chat(f"It is {day}.", prompt=f"Which day comes after {day}?") for day in ("Monday", "Tuesday", "Monday")]
    assert search(NEAR, rows) == []
    assert [row[0] for row in search(BOTH, rows)] == [2]


def test_a_long_system_prompt_does_not_make_rows_near_duplicates():
    generator = random.Random(5)
    system = Turn("system", write("en", 3000, generator))
    answers = [write("en", 150, generator) for _ in range(2)]
    rows = [
        Conversation(turns=(system, Turn("user", "?"), Turn("assistant", answer)), language="en", source="s")
        for answer in answers
    ]
    assert search(BOTH, rows) == []
    assert search(BOTH, [rows[0], rows[0]]) == [(1, 0, "exact_duplicates")]


@given(st.text(max_size=300), st.integers(1, 8))
@settings(max_examples=50)
def test_the_estimate_is_the_jaccard_similarity_of_character_ngrams(text, edits):
    """Within five standard errors of 512 permutations."""
    text = fold(
        text + "the quick brown fox jumps over the lazy dog, again and again and again, until it is tired of it"
    )
    other = fold(garble(text, edits, random.Random(edits)))
    config = CleaningConfig(near_duplicates=NearDuplicates(permutations=512, min_characters=0, part="answer"))
    left, right = (np.frombuffer(signature(config, chat(each)), "<u4") for each in (text, other))
    grams = [{each[at : at + 5] for at in range(len(each) - 4)} for each in (text, other)]
    true = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert abs(np.mean(left == right) - true) <= 5 * np.sqrt(true * (1 - true) / 512) + 1e-9


def test_candidates_are_those_of_the_librarys_own_index():
    """The search by sorting finds what datasketch's MinHashLSH finds, checked against the threshold."""
    generator = random.Random(3)
    texts = [write("en", 200, generator) for _ in range(40)]
    texts += [garble(text, edits, generator) for text in texts for edits in (2, 6, 12)]
    rows = [chat(text) for text in texts]
    values = stack(NEAR, rows).view("<u4")
    index = datasketch.MinHashLSH(threshold=0.8, num_perm=128, params=choose_bands(0.8, 128))
    expected = []
    for place, row in enumerate(values):
        sketch = datasketch.MinHash(hashvalues=row.astype(np.uint32), scheme="affine32")
        alike = sorted(other for other in index.query(sketch) if np.count_nonzero(values[other] == row) >= 0.8 * 128)
        if alike:
            expected.append((place, alike[0], "near_duplicates"))
        else:
            index.insert(place, sketch)
    assert search(NEAR, rows) == expected and len(expected) > 40


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_what_is_kept_is_first_alike_and_unlike_one_another(groups, seed):
    generator = np.random.default_rng(seed)
    bases = generator.integers(0, EMPTY, (4, 128), dtype=np.uint32)
    values = np.array([bases[group] for group in groups], np.uint32).reshape(-1, 128)
    noise = generator.random(values.shape) < 0.05
    values = np.where(noise, generator.integers(0, EMPTY, values.shape, dtype=np.uint32), values)
    signatures = values.astype("<u4").view(np.uint8).reshape(-1, 512)
    zeros = np.zeros(len(groups), np.int64)
    found = find_duplicates(NEAR, signatures, zeros, zeros)
    kept = set(range(len(groups))) - set(found.dropped_D.tolist())
    for dropped, original in zip(found.dropped_D.tolist(), found.kept_D.tolist(), strict=True):
        assert original < dropped and original in kept and groups[original] == groups[dropped]
        assert np.count_nonzero(values[original] == values[dropped]) >= 0.8 * 128
    again = find_duplicates(NEAR, signatures[sorted(kept)], zeros[sorted(kept)], zeros[sorted(kept)])
    assert not len(again.dropped_D)


@pytest.mark.parametrize("permutations", [16, 17, 128, 1024])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
def test_bands_fit_and_leave_a_pair_at_the_threshold_its_chance(threshold, permutations):
    bands, rows = choose_bands(threshold, permutations)
    assert bands * rows <= permutations
    assert 1 - (1 - threshold**rows) ** bands >= 0.9
    assert (bands, rows) == (16, 8) or (threshold, permutations) != (0.8, 128)


def test_at_threshold_one_only_equal_texts_are_near_duplicates():
    config = CleaningConfig(near_duplicates=NearDuplicates(threshold=1.0))
    text = write("en", 300, random.Random(0))
    rows = [chat(text), chat(garble(text, 1, random.Random(1))), chat(text.upper())]
    assert search(config, rows) == [(2, 0, "near_duplicates")]


def test_what_repeats_a_near_duplicate_points_at_what_is_kept():
    text = write("en", 300, random.Random(0))
    twin = garble(text, 2, random.Random(1))
    found = search(BOTH, [chat(text), chat(twin), chat(twin)])
    assert found == [(1, 0, "near_duplicates"), (2, 0, "exact_duplicates")]


def test_no_rows_and_no_predicates_are_no_duplicates():
    assert search(BOTH, []) == []
    assert search(CleaningConfig(), [chat("a"), chat("a")]) == []


def test_signatures_of_another_config_are_refused():
    with pytest.raises(
        DataError, match=r"do not fit data\.cleaning, which makes 520 bytes each; prepare the data again"
    ):
        find_duplicates(BOTH, np.zeros((3, 8), np.uint8), np.zeros(3), np.zeros(3))


def test_a_long_text_is_hashed_in_bounded_memory():
    """All permutations of all its n-grams at once would be 150 MB."""
    text = "".join(random.Random(0).choices(LETTERS["en"], k=300_000))
    tracemalloc.start()
    whole = np.frombuffer(signature(NEAR, chat(text)), "<u4")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6
    assert np.mean(whole == np.frombuffer(signature(NEAR, chat(text + "x")), "<u4")) > 0.97


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    from data.cleaning import duplicates

    duplicates._new_minhash.cache_clear()
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(
        DataError, match=r"near_duplicates needs the package datasketch; pip install 'polytune\[clean\]'"
    ):
        signature(NEAR, chat("long " * 100))
    assert len(signature(EXACT, chat("long " * 100))) == 8
