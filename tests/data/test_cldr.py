import hashlib
import re
import string
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from babel import Locale

from data import cldr
from data.cldr import choose_facts, cldr_conversations, cldr_languages, cldr_tasks
from data.languages import is_rtl, script_of, standardize
from data.phrasebook import read_phrases
from data.schema import DataError
from data.source_config import CldrSource

ALL_FACTS = 80
PROCEDURAL = ("rewrite", "copy", "reverse", "sort")
SLOTS = {"translation": {"x", "language"}, "rewrite": {"x", "rule"}}

# (language, task, key, how the question is filled, answer): literal CLDR names, written here by hand.
GOLDEN = [
    ("de", "weekday_after", "0", {"x": "Montag"}, "Dienstag"),
    ("de", "weekday_after", "6", {"x": "Sonntag"}, "Montag"),
    ("am", "weekday_after", "0", {"x": "ሰኞ"}, "ማክሰኞ"),
    ("he", "weekday_after", "4", {"x": "יום שישי"}, "יום שבת"),
    ("sw", "weekday_after", "0", {"x": "Jumatatu"}, "Jumanne"),
    ("ja", "month_number", "3", {"x": "3"}, "3月"),
    ("pl", "month_number", "3", {"x": "3"}, "marzec"),
    ("ru", "month_number", "5", {"x": "5"}, "май"),
    ("fi", "month_number", "12", {"x": "12"}, "joulukuu"),
    ("ur", "month_number", "3", {"x": "3"}, "مارچ"),
    ("fr", "currency_of_territory", "JP", {"x": "Japon"}, "yen japonais"),
    ("zh", "currency_of_territory", "JP", {"x": "日本"}, "日元"),
    ("en", "currency_of_territory", "US", {"x": "United States"}, "US Dollar"),
    ("es", "language_of_territory", "JP", {"x": "Japón"}, "japonés"),
    ("el", "language_of_territory", "GR", {"x": "Ελλάδα"}, "Ελληνικά"),
    ("de", "translation", "0>en", {"x": "Montag", "language": "Englisch"}, "Monday"),
    ("de", "translation", "DE>el", {"x": "Deutschland", "language": "Griechisch"}, "Γερμανία"),
    ("ar", "translation", "0>en", {"x": "الاثنين", "language": "الإنجليزية"}, "Monday"),
]


@pytest.fixture(scope="module")
def train():
    return cldr_conversations(CldrSource())


@pytest.fixture(scope="module")
def heldout():
    return cldr_conversations(CldrSource(split="heldout"))


def _prompts(conversations):
    return [(item.language, item.turns[0].content) for item in conversations]


def _fact(conversation):
    return conversation.id.rsplit("/", 1)[0]


def _words(text):
    """Letters, marks and digits only: what is left of a phrasing when punctuation does not count."""
    kept = (char if unicodedata.category(char)[0] in "LMN" or char in "{}" else " " for char in text.lower())
    return " ".join("".join(kept).split())


@pytest.mark.parametrize(("language", "task", "key", "slots", "answer"), GOLDEN)
def test_an_answer_is_not_what_cldr_says(language, task, key, slots, answer):
    facts = {fact.key: fact for fact in choose_facts(language, task, limit=ALL_FACTS, seed=0)}
    assert (dict(facts[key].slots), facts[key].answer) == (slots, answer)


def test_a_date_or_number_is_not_in_the_languages_own_format(monkeypatch):
    # Dates are drawn with one bound, numbers with two.
    drawn = {1: 12_500, 2: 1234567}
    monkeypatch.setattr(cldr.random.Random, "randrange", lambda self, *bounds: drawn[len(bounds)])
    monkeypatch.setattr(cldr.random.Random, "randint", lambda self, low, high: 5)
    monkeypatch.setattr(cldr.random.Random, "choice", lambda self, options: options[-1])

    def answers(task):
        languages = ("de", "en", "ja", "hi", "pt")
        return {tag: choose_facts(tag, task, limit=1, seed=0)[0].answer for tag in languages}

    assert answers("write_date") == {
        "de": "23. März 2024",
        "en": "March 23, 2024",
        "ja": "2024年3月23日",
        "hi": "23 मार्च 2024",
        "pt": "23 de março de 2024",
    }
    assert answers("write_number") == {
        "de": "1.234.567,5",
        "en": "1,234,567.5",
        "ja": "1,234,567.5",
        "hi": "12,34,567.5",
        "pt": "1.234.567,5",
    }


def test_names_depend_on_which_language_was_read_before():
    # babel shares what one locale resolved with all later ones: after this, Amharic days would be Hebrew.
    code = (
        "from babel import Locale\n"
        "from data.cldr import month_names, weekday_names\n"
        "for kind in (Locale('he').months, Locale('he').days): kind['stand-alone']['wide'][1]\n"
        "for tag in ('am', 'pl', 'ur'): print(ascii((weekday_names(tag)[0], month_names(tag)[2])))\n"
    )
    root = Path(cldr.__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    wanted = [("ሰኞ", "ማርች"), ("poniedziałek", "marzec"), ("پیر", "مارچ")]
    assert run.stdout.splitlines() == [ascii(pair) for pair in wanted]


def test_too_few_languages_or_scripts():
    languages = cldr_languages()
    assert languages == tuple(map(standardize, languages))
    assert len(languages) == 36
    assert len([language for language in languages if script_of(language) != "Latn"]) == 18
    assert len({script_of(language) for language in languages}) == 15
    assert {language for language in languages if is_rtl(language)} == {"ar", "he", "fa", "ur"}


def test_a_language_lacks_names_it_would_be_asked_for():
    # Without a name of its own a locale has its parent's, or a code.
    for language in cldr_languages():
        assert len(set(cldr.weekday_names(language))) == 7, language
        assert len(set(cldr.month_names(language))) == 12, language
        assert set(cldr_languages()) <= set(Locale.parse(language).languages), language
        for task in cldr_tasks():
            for fact in choose_facts(language, task, limit=12, seed=0):
                assert fact.answer and not re.fullmatch("[A-Z]{2,3}", fact.answer), (language, fact)


def test_two_right_answers_to_one_question():
    answers = defaultdict(set)
    for split in ("train", "heldout"):
        for item in cldr_conversations(CldrSource(split=split, facts=ALL_FACTS)):
            answers[item.language, item.turns[0].content].add(item.turns[1].content)
    assert [question for question, found in answers.items() if len(found) > 1] == []


def test_a_heldout_phrasing_was_trained_on(train, heldout):
    assert set(_prompts(train)).isdisjoint(_prompts(heldout))
    for prompts in (_prompts(train), _prompts(heldout)):
        assert [prompt for prompt, count in Counter(prompts).items() if count > 1] == []


def test_heldout_asks_for_other_facts_than_training(train, heldout):
    answers = [{_fact(item): item.turns[1] for item in part} for part in (train, heldout)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("language", cldr_languages())
def test_a_phrasing_is_broken_or_part_of_another(language):
    phrases = read_phrases(language)
    assert set(phrases) == {*cldr_tasks(), *PROCEDURAL}
    everything = [_words(text) for task in phrases.values() for text in task.train + task.heldout]
    assert len(set(everything)) == len(everything)
    for task, wordings in phrases.items():
        least_train, least_heldout = (2, 1) if task in PROCEDURAL else (5, 2)
        assert len(wordings.train) >= least_train and len(wordings.heldout) >= least_heldout, task
        for text in wordings.train + wordings.heldout:
            slots = [name for _, name, _, _ in string.Formatter().parse(text) if name]
            assert set(slots) == SLOTS.get(task, {"x"}) and len(slots) == len(set(slots)), text
            assert len(text) <= 60 and text == text.strip() == unicodedata.normalize("NFC", text), text
            assert task not in PROCEDURAL or text.endswith("{x}"), text
        for text in wordings.heldout:
            assert not any(_words(text) in _words(other) for other in wordings.train), text


def test_the_mixture_is_not_the_size_the_demo_counts_on(train, heldout):
    assert (len(train), len(heldout)) == (36 * 79 * 5, 36 * 79 * 2)
    wanted = dict.fromkeys(cldr_tasks(), 36 * 12 * 5) | {"weekday_after": 36 * 7 * 5}
    assert Counter(item.task for item in train) == wanted
    assert len({item.id for item in train}) == len(train)
    assert max(len(item.turns[0].content) for item in train + heldout) <= 80


@pytest.mark.parametrize("language", cldr_languages())
def test_currencies_are_guessed_by_always_saying_euro(language):
    facts = choose_facts(language, "currency_of_territory", limit=12, seed=0)
    assert len({fact.answer for fact in facts}) == 12


@pytest.mark.parametrize("task", ["currency_of_territory", "language_of_territory", "write_date", "write_number"])
def test_languages_are_asked_about_different_things(task):
    facts = [choose_facts(language, task, limit=12, seed=0) for language in cldr_languages()]
    assert len({tuple(fact.key for fact in chosen) for chosen in facts}) == 1


def test_translation_targets_include_the_language_itself_or_change_with_the_recipe(train):
    targets = {language: cldr.translation_targets(language) for language in cldr_languages()}
    assert all(language not in pair and len(set(pair)) == 2 for language, pair in targets.items())
    assert [targets[language] for language in ("de", "el", "zh")] == [
        ("en", "el"),
        ("en", "es"),
        ("en", "af"),
    ]
    assert targets["en"] == ("es", "fa")
    alone = cldr_conversations(CldrSource(languages=("de",)))
    assert alone == [item for item in train if item.language == "de"]


def test_the_same_seed_gives_another_data_set(train):
    assert cldr_conversations(CldrSource()) == train
    assert cldr_conversations(CldrSource(seed=1)) != train
    first = (train[0].id, train[0].language, train[0].source, train[0].task)
    assert first == ("af/weekday_after/4/p1", "af", "cldr", "weekday_after")
    # Another value here means that every plan made before is another plan: say so in the changelog.
    digest = hashlib.sha256("\n".join(item.id for item in train).encode()).hexdigest()
    assert digest[:16] == "d36912536c03526b"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (CldrSource(languages=("tlh",)), "unknown language 'tlh'.*Known: af, am"),
        (CldrSource(languages=("no-such",)), "no-such"),
        (CldrSource(languages=("de", "deu")), "'de' is listed more than once"),
        (CldrSource(tasks=("weekday_afer",)), "unknown task 'weekday_afer'; did you mean 'weekday_after'"),
    ],
)
def test_a_misspelt_language_or_task_gives_no_data_silently(source, message):
    with pytest.raises(DataError, match=message):
        cldr_conversations(source)


def test_an_unknown_language_has_phrases():
    with pytest.raises(DataError, match="has no language 'xx'"):
        read_phrases("xx")
