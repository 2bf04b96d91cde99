"""What predicates find, and what they lose, on real sentences in 205 languages. Numbers are printed: `pytest -s`."""

import collections
import json
import os
import random
from pathlib import Path

import pytest
from conversations import chat

from data.cleaning.identification import check_language, is_close, is_known, load_identifier
from data.cleaning.scripts import accepted_scripts, check_script
from data.cleaning_config import LanguageCheck, ScriptCheck
from data.languages import standardize

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif("POLYTUNE_REALDATA" not in os.environ, reason="POLYTUNE_REALDATA is not set"),
]


@pytest.fixture(scope="module")
def sentences() -> list[tuple[str, str]]:
    """Tag and text: 30 sentences in each of the languages of SIB-200."""
    path = Path(os.environ["POLYTUNE_REALDATA"]) / "train" / "sib200_topic_parallel.jsonl"
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(standardize(row["_lang"]), row["text"]) for row in rows]


def test_the_script_check_keeps_every_right_sentence_and_drops_those_in_another_script(sentences):
    judged: collections.Counter[str] = collections.Counter()
    for tag, text in sentences:
        finding = check_script(chat(text, language=tag), check=ScriptCheck())
        assert finding.detail == "", (tag, text)
        judged[tag] += finding.is_judged
    blind = sorted(tag for tag, count in judged.items() if not count)
    print(f"\nscript: {len(judged) - len(blind)} of {len(judged)} languages judged, not {', '.join(blind)}")
    assert len(judged) == 205 and len(blind) <= 4
    generator, planted, found = random.Random(0), 0, 0
    for tag, _ in sentences:
        other, text = generator.choice(sentences)
        if {*accepted_scripts(tag)} & {*accepted_scripts(other)} or not accepted_scripts(tag) or not judged[other]:
            continue
        planted += 1
        found += bool(check_script(chat(text, language=tag), check=ScriptCheck()).detail)
    print(f"script: {found} of {planted} planted sentences found")
    assert planted > 1000 and found >= 0.999 * planted  # one has an English heading


def test_the_identifier_keeps_right_sentences_and_finds_swapped_ones(sentences):
    known = [(tag, text) for tag, text in sentences if is_known(tag, None)]
    right: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    lost = found = planted = 0
    generator = random.Random(0)
    for tag, text in known:
        label, _ = load_identifier(None).identify(text)
        total[tag] += 1
        right[tag] += is_close(tag, label)
        lost += bool(check_language(chat(text, language=tag), check=LanguageCheck(), model=None).detail)
        other, swapped = generator.choice(known)
        if not is_close(tag, other):
            planted += 1
            found += bool(check_language(chat(swapped, language=tag), check=LanguageCheck(), model=None).detail)
    wrong = {tag: f"{right[tag]}/{total[tag]}" for tag in total if right[tag] < total[tag]}
    accuracy = right.total() / total.total()
    print(f"\nidentifier: {len(total)} languages known, accuracy {accuracy:.4f}, not all right: {wrong}")
    print(f"identifier: {lost} of {len(known)} right sentences dropped, {found} of {planted} swapped ones found")
    assert len(total) >= 120 and accuracy >= 0.995
    assert lost <= 0.002 * len(known)
    assert found >= 0.95 * planted
