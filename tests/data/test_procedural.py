import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.phrasebook import phrase_languages
from data.procedural import (
    ALPHABET,
    Rule,
    copy_text,
    ignore_rule_answer,
    is_heldout,
    procedural_conversations,
    reverse_text,
    rewrite_leftmost,
    sort_text,
    spell,
)
from data.schema import Conversation, DataError, Turn
from data.source_config import ProceduralSource

LETTERS = st.text(alphabet=ALPHABET, max_size=8)
SIDE = st.text(alphabet=ALPHABET, min_size=1, max_size=3)
SPELLED = rf"[{ALPHABET}](?: [{ALPHABET}])*"
RULE = re.compile(rf"(?<!\w)({SPELLED}) -> ({SPELLED})(?!\w)")


def _unspelled(conversation):
    """(rule or None, string, answer) as a reader of the prompt finds them."""
    prompt, answer = (turn.content for turn in conversation.turns)
    found = RULE.search(prompt)
    rule = Rule(*(side.replace(" ", "") for side in found.groups())) if found else None
    return rule, ignore_rule_answer(conversation).replace(" ", ""), answer.replace(" ", "")


def _conversation(prompt):
    return Conversation(turns=(Turn("user", prompt), Turn("assistant", "x")), language="en", source="s")


@pytest.fixture(scope="module")
def train():
    return procedural_conversations(ProceduralSource(examples=4000))


@pytest.fixture(scope="module")
def heldout():
    return procedural_conversations(ProceduralSource(examples=2000, split="heldout"))


@pytest.mark.parametrize(
    ("text", "left", "right", "answer"),
    [
        ("abab", "ab", "c", "cab"),
        ("aaaa", "aa", "b", "baa"),
        ("abc", "bc", "bcd", "abcd"),
        ("abc", "c", "abc", "ababc"),
        ("abc", "ac", "d", "abc"),
        ("ab", "abc", "d", "ab"),
        ("", "a", "b", ""),
        ("hgfe", "hgfe", "a", "a"),
    ],
)
def test_rewriting_is_not_leftmost_or_not_once(text, left, right, answer):
    assert rewrite_leftmost(text, left, right) == answer


def test_an_empty_left_side_matches_everywhere():
    with pytest.raises(ValueError, match="at least one letter"):
        rewrite_leftmost("abc", "", "d")


@pytest.mark.parametrize(
    ("oracle", "text", "answer"),
    [
        (copy_text, "bacab", "bacab"),
        (reverse_text, "abcd", "dcba"),
        (reverse_text, "", ""),
        (sort_text, "bacab", "aabbc"),
        (sort_text, "hgfe", "efgh"),
    ],
)
def test_copy_reverse_or_sort_is_wrong(oracle, text, answer):
    assert oracle(text) == answer


@given(LETTERS, SIDE, SIDE)
def test_rewriting_differs_from_the_definition(text, left, right):
    places = [index for index in range(len(text)) if text[index : index + len(left)] == left]
    wanted = text[: places[0]] + right + text[places[0] + len(left) :] if places else text
    assert rewrite_leftmost(text, left, right) == wanted


@given(LETTERS)
def test_reversing_or_sorting_loses_letters(text):
    assert reverse_text(reverse_text(text)) == text
    assert Counter(sort_text(text)) == Counter(text)
    assert sort_text(text) == sort_text(reverse_text(text))


def test_an_answer_does_not_follow_from_its_prompt(train, heldout):
    oracles = {"copy": copy_text, "reverse": reverse_text, "sort": sort_text}
    for item in train + heldout:
        rule, text, answer = _unspelled(item)
        assert (rule is not None) == (item.task == "rewrite"), item.id
        assert answer == (rewrite_leftmost(text, *rule) if rule else oracles[item.task](text)), item.id


def test_a_heldout_rule_or_string_was_trained_on():
    # Other seeds, sizes and numbers of rules: the split must not depend on any of them.
    rewriting = ProceduralSource(examples=5000, rules=3000, seed=5, tasks=("rewrite",))
    copying = ProceduralSource(examples=5000, seed=5, tasks=("copy",))
    trained = procedural_conversations(rewriting) + procedural_conversations(copying)
    asked = procedural_conversations(ProceduralSource(examples=3000, rules=700, split="heldout"))
    rules = [{_unspelled(item)[0] for item in part} - {None} for part in (trained, asked)]
    texts = [{_unspelled(item)[1] for item in part} for part in (trained, asked)]
    assert (len(rules[0]), len(rules[1])) == (3000, 700)
    assert rules[0].isdisjoint(rules[1])
    assert texts[0].isdisjoint(texts[1])


def test_the_heldout_part_moved():
    # A model trained before the move would be asked about what it was trained on.
    texts = ("abcd", "dcba", "aabb", "hgfe", "abab", "bcde", "gagb")
    assert [text for text in texts if is_heldout(text)] == ["aabb", "hgfe", "abab"]
    rules = (Rule("a", "b"), Rule("b", "a"), Rule("ab", "c"), Rule("c", "ab"), Rule("abc", "d"))
    assert [rule for rule in rules if is_heldout(rule)] == [Rule("a", "b")]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_no_ops_are_not_the_share_that_was_asked_for(share, split):
    source = ProceduralSource(tasks=("rewrite",), examples=500, no_op_share=share, split=split)
    rewrites = [_unspelled(item) for item in procedural_conversations(source)]
    unchanged = [text == answer for _, text, answer in rewrites]
    assert sum(unchanged) == 500 * share
    assert unchanged == [rule.left not in text for rule, text, _ in rewrites]


def test_a_model_that_ignores_the_rule_scores(heldout):
    right = Counter(item.task for item in heldout if ignore_rule_answer(item) == item.turns[1].content)
    assert right == {"rewrite": 100, "copy": 500}


@pytest.mark.parametrize("prompt", ["Règle a b -> c : d e", "règle d e", "逆に：d e", "Reverse:d e"])
def test_the_baseline_reads_a_letter_of_the_instruction(prompt):
    assert ignore_rule_answer(_conversation(prompt)) == "d e"


@pytest.mark.parametrize("prompt", ["Name the day.", "Name the day: Friday", "", "a b c."])
def test_the_baseline_answers_something_else_than_procedural_tasks(prompt):
    with pytest.raises(DataError, match="ignore-rule baseline is for procedural tasks only"):
        ignore_rule_answer(_conversation(prompt))


def test_rules_are_used_unevenly():
    source = ProceduralSource(tasks=("rewrite",), examples=1050, rules=100)
    uses = Counter(_unspelled(item)[0] for item in procedural_conversations(source))
    assert len(uses) == 100
    assert set(uses.values()) == {10, 11}


def test_tasks_languages_or_phrasings_are_left_out(train, heldout):
    assert Counter(item.task for item in train) == dict.fromkeys(("rewrite", "copy", "reverse", "sort"), 1000)
    assert {item.language for item in train} == set(phrase_languages())
    assert {item.id.rsplit("/", 1)[1] for item in train} == {"p1", "p2", "p3"}
    assert {item.id.rsplit("/", 1)[1] for item in heldout} == {"p1", "p2", "p3", "h1"}
    for part in (train, heldout):
        assert len({item.id for item in part}) == len(part)
        assert len({(item.task, _unspelled(item)[:2]) for item in part}) == len(part)


def test_examples_are_too_long_for_a_small_model(train, heldout):
    for item in train + heldout:
        _, text, answer = _unspelled(item)
        assert 4 <= len(text) <= 8 and 1 <= len(answer) <= 10
        assert len(item.turns[0].content) <= 90


def test_an_odd_number_of_examples_is_rounded():
    assert len(procedural_conversations(ProceduralSource(examples=7))) == 7
    assert len(procedural_conversations(ProceduralSource(examples=1, tasks=("sort", "copy")))) == 1


def test_the_same_seed_gives_another_data_set(train):
    assert procedural_conversations(ProceduralSource(examples=4000)) == train
    assert procedural_conversations(ProceduralSource(examples=4000, seed=1)) != train


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (ProceduralSource(languages=("tlh",)), "unknown language 'tlh'"),
        (ProceduralSource(tasks=("copy", "copy")), "'copy' is listed more than once"),
        (ProceduralSource(rules=2_000_000), "rules=2000000, but sides of up to 3 letters"),
    ],
)
def test_an_impossible_recipe_gives_data(source, message):
    with pytest.raises(DataError, match=message):
        procedural_conversations(source)


def test_letters_share_tokens():
    assert spell("bac") == "b a c"
