"""Facts of Unicode CLDR, read through `babel` and asked in the language itself: nothing is downloaded.

Only the wordings of the questions are ours (`data/phrases/`); every name and format comes from CLDR. What a
fact is about is chosen by the seed: languages are asked about the same weekdays and dates, and about the same
territories as far as their answers differ. Dates are Gregorian and digits ASCII, as babel writes them.
"""

import datetime
import functools
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import chain, product, zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from babel import Locale, localedata
from babel.core import get_global
from babel.dates import format_date
from babel.languages import get_official_languages
from babel.numbers import format_decimal, get_territory_currencies

from data.phrasebook import Phrasings, choose_languages, choose_names, phrase_languages, read_phrases
from data.schema import Conversation, Turn
from data.source_config import CldrSource

# Legal tender changes: without a date, babel would answer with the day's, and a run could not be repeated.
CURRENCY_DATE = datetime.date(2025, 1, 1)
# Left out because CLDR as of babel 2.18 has not caught up: Bulgaria joined the euro on 2026-01-01.
OUTDATED_CURRENCIES = frozenset({"BG"})


class Fact(NamedTuple):
    """One question with one right answer, in one language."""

    key: str
    """What it is about, the same in all languages: `3`, `JP`, `0>en`."""
    slots: Mapping[str, str]
    """What fills the phrasing's placeholders."""
    answer: str


FactMaker = Callable[[str, random.Random], Iterator[Fact]]


def cldr_languages() -> tuple[str, ...]:
    """The languages whose phrase book makes CLDR facts into instructions, as BCP-47 tags."""
    return phrase_languages()


def cldr_tasks() -> tuple[str, ...]:
    """The tasks made of CLDR facts."""
    return tuple(_MAKERS)


def cldr_conversations(source: CldrSource) -> list[Conversation]:
    """Every chosen fact in every phrasing of the split, one question and its bare answer each.

    Both splits ask the same facts (for the same `facts` and `seed`) in different words. Ids name the fact and
    the phrasing: `de/weekday_after/3/p1` in training, `.../h1` held out. Raises DataError for an unknown
    language or task.
    """
    languages = choose_languages(source.languages, source=source.name)
    tasks = choose_names(source.tasks, cldr_tasks(), what="task", source=source.name)
    conversations = []
    for language in languages:
        phrases = read_phrases(language)
        for task in tasks:
            conversations += _ask(source, language, task=task, phrasings=phrases[task])
    return conversations


def choose_facts(language: str, task: str, *, limit: int, seed: int) -> list[Fact]:
    """At most `limit` facts, chosen by the seed, new answers before repeated ones.

    Without that preference many currencies would be the euro, and always saying so would look like knowledge.
    """
    first: dict[str, Fact] = {}
    repeated: list[Fact] = []
    for fact in _MAKERS[task](language, random.Random(f"{seed} {task}")):
        if first.setdefault(fact.answer, fact) is not fact:
            repeated.append(fact)
        if len(first) == limit:
            break
    return [*first.values(), *repeated][:limit]


@functools.cache
def weekday_names(language: str) -> tuple[str, ...]:
    """The seven names as they stand alone, Monday first."""
    return _standalone_names(language, "days")


@functools.cache
def month_names(language: str) -> tuple[str, ...]:
    """The twelve names as they stand alone (`marzec`, not the `marca` of a Polish date), January first."""
    return _standalone_names(language, "months")


def _ask(source: CldrSource, language: str, *, task: str, phrasings: Phrasings) -> Iterator[Conversation]:
    for fact in choose_facts(language, task, limit=source.facts, seed=source.seed):
        for label, phrasing in phrasings.of(source.split):
            yield Conversation(
                turns=(Turn("user", phrasing.format(**fact.slots)), Turn("assistant", fact.answer)),
                language=language,
                source=source.name,
                task=task,
                id=f"{language}/{task}/{fact.key}/{label}",
            )


def _standalone_names(language: str, kind: Literal["days", "months"]) -> tuple[str, ...]:
    """CLDR's stand-alone wide names, or the ones used in dates where a language has no other.

    `Locale.months["stand-alone"]` is not safe to ask: it writes what it resolves into data that all locales
    share, so a later locale may get an earlier one's names (python-babel issue 1234). Hence the own file.
    """
    names = pickle.loads(Path(localedata.resolve_locale_filename(_identifier(language))).read_bytes())[kind]
    wide = {**names["format"]["wide"], **names.get("stand-alone", {}).get("wide", {})}
    return tuple(wide[index] for index in sorted(wide))


def _identifier(language: str) -> str:
    return language.replace("-", "_")


@functools.cache
def _locale(language: str) -> Locale:
    return Locale.parse(_identifier(language))


@functools.cache
def _territories() -> tuple[str, ...]:
    """The territory each language of the phrase book is most at home in, by CLDR's likely subtags."""
    likely = get_global("likely_subtags")
    return tuple(sorted({likely[_identifier(tag)].rsplit("_", 1)[-1] for tag in cldr_languages()}))


def _shuffled(items: Iterable[str], rng: random.Random) -> list[str]:
    items = list(items)
    rng.shuffle(items)
    return items


def _weekday_after(language: str, rng: random.Random) -> Iterator[Fact]:
    names = weekday_names(language)
    for key in _shuffled("0123456", rng):
        yield Fact(key, {"x": names[int(key)]}, names[(int(key) + 1) % 7])


def _month_number(language: str, rng: random.Random) -> Iterator[Fact]:
    names = month_names(language)
    for key in _shuffled(map(str, range(1, 13)), rng):
        yield Fact(key, {"x": key}, names[int(key) - 1])


def _currency_of_territory(language: str, rng: random.Random) -> Iterator[Fact]:
    locale = _locale(language)
    for territory in _shuffled(_territories(), rng):
        currencies = get_territory_currencies(territory, start_date=CURRENCY_DATE, end_date=CURRENCY_DATE)
        if len(currencies) == 1 and territory not in OUTDATED_CURRENCIES:
            yield Fact(territory, {"x": locale.territories[territory]}, locale.currencies[currencies[0]])


def _language_of_territory(language: str, rng: random.Random) -> Iterator[Fact]:
    locale = _locale(language)
    for territory in _shuffled(_territories(), rng):
        # Regional and de facto languages count too: with a second one, the question has no one answer.
        official = get_official_languages(territory, regional=True, de_facto=True)
        if len(official) == 1:
            yield Fact(territory, {"x": locale.territories[territory]}, locale.languages[official[0]])


def translation_targets(language: str) -> tuple[str, str]:
    """The two languages names are translated into: English and the next of the phrase book (never itself)."""
    languages = cldr_languages()
    start = languages.index(language)
    others = ["en", *languages[start + 1 :], *languages[:start]]
    first, second, *_ = dict.fromkeys(other for other in others if other != language)
    return first, second


def _translation(language: str, rng: random.Random) -> Iterator[Fact]:
    """Names of weekdays and territories by turns, from the language asked in into a target language."""
    targets = translation_targets(language)
    # Drawn before the languages differ, so that each asks for the same names in its first and second target.
    days = _shuffled((f"{day} {which}" for day, which in product(range(7), range(2))), rng)
    places = _shuffled((f"{place} {which}" for place, which in product(_territories(), range(2))), rng)
    for choice in filter(None, chain.from_iterable(zip_longest(days, places))):
        item, which = choice.split()
        target = targets[int(which)]
        name, answer = _name_of(item, language), _name_of(item, target)
        if name != answer:
            slots = {"x": name, "language": _locale(language).languages[target]}
            yield Fact(f"{item}>{target}", slots, answer)


def _name_of(item: str, language: str) -> str:
    return weekday_names(language)[int(item)] if item.isdigit() else _locale(language).territories[item]


def _write_date(language: str, rng: random.Random) -> Iterator[Fact]:
    locale, first, seen = _locale(language), datetime.date(1990, 1, 1), set()
    while True:
        date = first + datetime.timedelta(days=rng.randrange(14_600))
        if date not in seen:
            seen.add(date)
            yield Fact(f"{date}", {"x": f"{date}"}, format_date(date, format="long", locale=locale))


def _write_number(language: str, rng: random.Random) -> Iterator[Fact]:
    """Numbers of five to seven digits, and maybe a decimal.

    Not fewer: Spanish and Polish leave the separator out below 10,000, which babel does not know.
    """
    locale, seen = _locale(language), set()
    while True:
        whole = rng.randrange(10_000, 10 ** rng.randint(5, 7))
        number = rng.choice((f"{whole}", f"{whole}.{rng.randint(1, 9)}"))
        if number not in seen:
            seen.add(number)
            yield Fact(number, {"x": number}, format_decimal(Decimal(number), locale=locale))


_MAKERS: Mapping[str, FactMaker] = MappingProxyType(
    {
        "weekday_after": _weekday_after,
        "month_number": _month_number,
        "currency_of_territory": _currency_of_territory,
        "language_of_territory": _language_of_territory,
        "translation": _translation,
        "write_date": _write_date,
        "write_number": _write_number,
    }
)
