"""Tasks on short strings whose answers a function knows: rewrite by a rule, copy, reverse, sort.

They show whether a model follows an instruction or recalls what it was trained on: held-out rules, and held-out
strings as inputs, occur in no training split, whatever its size and seed. Source: arXiv:2402.10891 (leftmost rewriting
by rules; what decides whether unseen rules work is how many distinct ones were trained on).
"""

import random
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from data.phrasebook import Phrasings, Split, choose_languages, choose_names, read_phrases
from data.schema import Conversation, DataError, Turn
from data.source_config import ProceduralSource

ALPHABET = "abcdefghijkl"
MIN_LETTERS = 4
MOST_ATTEMPTS = 10_000
# One rule and one string in five belong to the held-out split.
HELDOUT_PART = 5
_LETTERS_AT_END = re.compile(rf"(?<!\w)[{ALPHABET}](?: [{ALPHABET}])*$")


class Rule(NamedTuple):
    """Replace the leftmost `left` by `right`, once."""

    left: str
    right: str


class Example(NamedTuple):
    """One string, what to do with it, and the answer; letters not yet spaced."""

    task: str
    rule: Rule | None
    """None for the tasks that have none."""
    text: str
    answer: str


ExampleMaker = Callable[[ProceduralSource, int, random.Random], Iterator[Example]]


def rewrite_leftmost(text: str, left: str, right: str) -> str:
    """The text with its leftmost `left` replaced by `right`, once; unchanged if there is none.

    rewrite_leftmost("abab", "ab", "c") == "cab". Raises ValueError for an empty `left`.
    """
    if not left:
        raise ValueError("the left side of a rule is empty; give at least one letter")
    return text.replace(left, right, 1)


def copy_text(text: str) -> str:
    """The text itself."""
    return text


def reverse_text(text: str) -> str:
    """The text's letters from last to first."""
    return text[::-1]


def sort_text(text: str) -> str:
    """The text's letters in alphabetical order, repeated ones included."""
    return "".join(sorted(text))


def spell(text: str) -> str:
    """The letters with spaces between them, so that each is a token of its own."""
    return " ".join(text)


def ignore_rule_answer(conversation: Conversation) -> str:
    """What a model answers that ignores the instruction: the string of the prompt, unchanged.

    Right for every copy and every rewrite whose rule does not apply, wrong for everything else: the score to
    beat. Raises DataError if the first user turn does not end in a spaced string.
    """
    prompt = next(turn.content for turn in conversation.turns if turn.role == "user")
    found = _LETTERS_AT_END.search(prompt)
    if not found:
        raise DataError(
            f"{conversation.id or prompt!r}: no string of the letters {ALPHABET} at the end of the prompt;"
            " the ignore-rule baseline is for procedural tasks only"
        )
    return found.group()


def is_heldout(item: str | Rule) -> bool:
    """Whether a rule or a string belongs to the held-out split: its own property, whatever seed and size."""
    text = item if isinstance(item, str) else f"{item.left}>{item.right}"
    return zlib.crc32(text.encode()) % HELDOUT_PART == 0


def procedural_conversations(source: ProceduralSource) -> list[Conversation]:
    """`source.examples` distinct examples, spread evenly over tasks, languages and phrasings.

    The held-out split has rules and strings that no training split has. It asks in training and held-out
    phrasings by turns; ids say which: `en/rewrite/7/p1` or `en/rewrite/7/h1`. A share `no_op_share` of the
    rewrites holds no match, exact up to rounding. Raises DataError for a language that the phrase book lacks,
    a task named twice, or more rules than there is room for.
    """
    languages = choose_languages(source.languages, source=source.name)
    tasks = choose_names(source.tasks, _MAKERS, what="task", source=source.name)
    most = _most_rules(source)
    if source.rules > most:
        raise DataError(
            f"source {source.name!r}: rules={source.rules}, but sides of up to {source.max_side} letters have room for "
            f"{most}; lower rules or raise max_side"
        )
    phrases = {language: read_phrases(language) for language in languages}
    conversations: list[Conversation] = []
    for place, task in enumerate(tasks):
        count = len(range(place, source.examples, len(tasks)))
        examples = _MAKERS[task](source, count, random.Random(f"{source.seed} {source.split} {task}"))
        for index, example in enumerate(examples):
            cycle, which = divmod(index, len(languages))
            language = languages[which]
            wordings = _wordings(phrases[language][task], source.split)
            label, wording = wordings[cycle % len(wordings)]
            prompt = wording.format(x=spell(example.text), rule=_spell_rule(example.rule))
            conversations.append(
                Conversation(
                    turns=(Turn("user", prompt), Turn("assistant", spell(example.answer))),
                    language=language,
                    source=source.name,
                    task=task,
                    id=f"{language}/{task}/{index}/{label}",
                )
            )
    return conversations


def _wordings(phrasings: Phrasings, split: Split) -> tuple[tuple[str, str], ...]:
    if split == "train":
        return phrasings.of("train")
    return phrasings.of("train") + phrasings.of("heldout")


def _spell_rule(rule: Rule | None) -> str:
    # The same sign in every language: what a rule does can then be learnt from all of them together.
    return f"{spell(rule.left)} -> {spell(rule.right)}" if rule else ""


def _draw_letters(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(ALPHABET, k=count))


def _most_rules(source: ProceduralSource) -> int:
    """Half of the rules that the training split has room for: drawing more by trial would take ever longer."""
    sides = sum(len(ALPHABET) ** letters for letters in range(1, source.max_side + 1))
    return sides * (sides - 1) * (HELDOUT_PART - 1) // HELDOUT_PART // 2


def _draw_rules(count: int, max_side: int, *, heldout: bool, rng: random.Random) -> list[Rule]:
    """Distinct rules that change something; short sides are as likely as long ones while they last."""
    rules: dict[Rule, None] = {}
    while len(rules) < count:
        rule = Rule(*(_draw_letters(rng, rng.randint(1, max_side)) for _ in range(2)))
        if rule.left != rule.right and is_heldout(rule) == heldout:
            rules[rule] = None
    return list(rules)


def _draw_text(rule: Rule, max_letters: int, *, is_no_op: bool, rng: random.Random) -> str:
    """A string that holds the rule's left side at a random place or, if `is_no_op`, nowhere."""
    count = rng.randint(MIN_LETTERS, max_letters)
    if is_no_op:
        return next(text for text in _endless_texts(count, rng) if rule.left not in text)
    rest = _draw_letters(rng, count - len(rule.left))
    place = rng.randint(0, len(rest))
    return rest[:place] + rule.left + rest[place:]


def _attempts(source: ProceduralSource) -> Iterator[int]:
    """Counts tries at one distinct example; DataError when there seem to be no more."""
    yield from range(MOST_ATTEMPTS)
    raise DataError(
        f"source {source.name!r}: no room for {source.examples} distinct examples with strings of up to "
        f"{source.max_letters} letters and {source.rules} rules; lower examples or raise max_letters or rules"
    )


def _endless_texts(count: int, rng: random.Random) -> Iterator[str]:
    while True:
        yield _draw_letters(rng, count)


def _rewrites(source: ProceduralSource, count: int, rng: random.Random) -> Iterator[Example]:
    """Examples of rewriting; every rule is used equally often, give or take one."""
    heldout = source.split == "heldout"
    wanted = min(source.rules, count)
    if heldout:
        wanted = min(wanted, _most_rules(source) // (HELDOUT_PART - 1))
    rules = _draw_rules(wanted, source.max_side, heldout=heldout, rng=rng)
    schedule = [rules[index % len(rules)] for index in range(count)]
    no_ops = [index < round(count * source.no_op_share) for index in range(count)]
    # Shuffled apart, so that neither goes with a language or a phrasing.
    rng.shuffle(schedule)
    rng.shuffle(no_ops)
    seen: set[tuple[Rule, str]] = set()
    for rule, is_no_op in zip(schedule, no_ops, strict=True):
        attempts = _attempts(source)
        text = None
        while text is None or is_heldout(text) != heldout or (rule, text) in seen:
            next(attempts)
            text = _draw_text(rule, source.max_letters, is_no_op=is_no_op, rng=rng)
        seen.add((rule, text))
        yield Example("rewrite", rule, text, rewrite_leftmost(text, rule.left, rule.right))


def _make_from(oracle: Callable[[str], str], task: str) -> ExampleMaker:
    """A maker of distinct strings; unless the task is copying, none that the oracle leaves as it is."""

    def make(source: ProceduralSource, count: int, rng: random.Random) -> Iterator[Example]:
        seen: set[str] = set()
        attempts = _attempts(source)
        while len(seen) < count:
            next(attempts)
            text = _draw_letters(rng, rng.randint(MIN_LETTERS, source.max_letters))
            gives_itself_away = task != "copy" and oracle(text) == text
            if text in seen or gives_itself_away or is_heldout(text) != (source.split == "heldout"):
                continue
            seen.add(text)
            attempts = _attempts(source)
            yield Example(task, None, text, oracle(text))

    return make


_MAKERS: Mapping[str, ExampleMaker] = MappingProxyType(
    {
        "rewrite": _rewrites,
        "copy": _make_from(copy_text, "copy"),
        "reverse": _make_from(reverse_text, "reverse"),
        "sort": _make_from(sort_text, "sort"),
    }
)
