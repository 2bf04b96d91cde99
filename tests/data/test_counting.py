"""Counting: exact, the same in any number of processes, with the row of whatever cannot be counted."""

import functools
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import TokenizerConfig
from data.counting import make_meter, measure
from data.schema import Conversation, DataError, Turn
from data.statistics import LONGEST, CorpusStatistics
from data.tokenizer import load_tokenizer, train_tokenizer

REALDATA = os.environ.get("POLYTUNE_REALDATA")


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three", "habari ya asubuhi", "วันนี้"] * 40, TokenizerConfig(vocab_size=320))


@pytest.fixture(scope="module")
def meter(tokenizer):
    return make_meter("small", tokenizer)


def talk(*turns, language="en", source="s", row="f.jsonl:1"):
    return Conversation(
        turns=tuple(Turn(role=role, content=text) for role, text in turns), language=language, source=source, id=row
    )


def test_a_small_corpus_counted_by_hand(meter, tokenizer):
    question = talk(("system", "be kind"), ("user", "e\u0301 ж?"), ("assistant", "two 😀"))
    text = talk(("text", "one two"), language="th", source="web", row="w.txt:9")
    statistics = measure([question, text], [meter])
    first, second = statistics.cells
    assert (first.source, first.language, first.rows, first.turns) == ("s", "en", 1, 3)
    # "be kind" 7, "é ж?" 5 code points in 7 bytes, "two 😀" 5 in 8.
    assert (first.characters, first.size_bytes, first.words) == (17, 22, 5)
    lengths = [len(tokenizer.encode(turn.content)) for turn in question.turns]
    counts = first.tokens[0]
    assert (counts.prompt, counts.answer, counts.text, counts.unknown) == (lengths[0] + lengths[1], lengths[2], 0, 0)
    assert counts.spelled_in_bytes >= len("\u0301ж😀".encode())
    assert (second.turns, second.words, second.tokens[0].text) == (1, None, len(tokenizer.encode("one two")))
    assert first.longest[0][0].row == "f.jsonl:1" and first.longest[0][0].tokens == counts.total


@pytest.mark.parametrize("field", ["thoughts", "tool_calls"])
def test_thoughts_and_calls_are_the_answer_s(meter, tokenizer, field):
    def count(turn):
        return measure([Conversation(turns=(turn,), language="en", source="s")], [meter]).total()

    alone, more = count(Turn("assistant", "two")), count(Turn("assistant", "two", **{field: "one"}))
    assert more.tokens[0].answer - alone.tokens[0].answer == len(tokenizer.encode("one"))
    assert (more.characters - alone.characters, more.words) == (3, 2)


conversations = st.lists(
    st.builds(
        lambda text, language, row: talk(("user", text), ("assistant", text[::-1]), language=language, row=f"f:{row}"),
        text=st.text(max_size=30),
        language=st.sampled_from(("en", "th", "ar")),
        row=st.integers(1, 9),
    ),
    max_size=20,
)


@given(conversations, st.integers(0, 20))
@settings(max_examples=50)
def test_the_whole_is_the_sum_of_its_parts_wherever_it_is_cut(meter, rows, cut):
    whole, none = measure(rows, [meter]), CorpusStatistics(tokenizers=(meter.facts,))
    assert measure(rows[:cut], [meter]).merge(measure(rows[cut:], [meter])) == whole
    single = [measure([row], [meter]) for row in rows]
    assert functools.reduce(CorpusStatistics.merge, single, none) == whole


def test_worker_processes_count_the_same_and_show_the_row_that_cannot_be_spelled(meter):
    rows = [talk(("user", f"one {n}"), ("assistant", "two" * (n % 7)), row=f"f.jsonl:{n}") for n in range(1200)]
    assert measure(rows, [meter, meter], workers=2) == measure(rows, [meter, meter])
    bad = talk(("user", "a\ud800"), ("assistant", "b"), row="f.jsonl:7777")
    with pytest.raises(DataError, match=r"s f\.jsonl:7777: tokenizer small: text holds a lone surrogate.*bad_rows"):
        measure([*rows, bad], [meter], workers=2)
    refused = []
    counted = measure([bad, *rows], [meter], workers=2, reject=lambda row, error: refused.append(row.id))
    assert refused == ["f.jsonl:7777"] and counted == measure(rows, [meter])


class Deadly:
    """Ends the process that encodes with it, as the system does when memory runs out."""

    def encode(self, text):
        os._exit(9)


def test_a_worker_that_dies_is_an_error_that_says_what_to_do(meter):
    with pytest.raises(DataError, match=r"a worker process ended while it counted.*fewer --workers"):
        measure([talk(("user", "one"))], [meter._replace(tokenizer=Deadly())], workers=1)


def test_a_row_that_one_tokenizer_refuses_counts_for_none(meter):
    good, bad = talk(("user", "one")), talk(("user", "one"), ("assistant", "\ud800"))
    refused = []
    statistics = measure([good, bad], [meter], reject=lambda row, error: refused.append(str(error)))
    assert statistics == measure([good], [meter]) and len(refused) == 1


def test_the_longest_rows_are_the_longest_ties_by_place(meter):
    rows = [talk(("user", "ж" * (n % 9)), row=f"f:{n}") for n in range(40)]
    (kept,) = measure(rows, [meter]).total().longest
    expected = sorted(((2 * (n % 9), f"f:{n}") for n in range(40)), key=lambda item: (-item[0], item[1]))[:LONGEST]
    assert [row.row for row in kept] == [row for _, row in expected]
    assert kept[0].characters == 8 and len(kept) == LONGEST
    assert measure(reversed(rows), [meter]).total().longest == (kept,)


def test_memory_does_not_grow_with_rows(meter):
    def rows(count):
        return (talk(("user", f"one two {n}"), ("assistant", "three"), row=f"f:{n}") for n in range(count))

    measure(rows(10), [meter])
    tracemalloc.start()
    try:
        measure(rows(300), [meter])
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        measure(rows(6000), [meter])
        assert tracemalloc.get_traced_memory()[1] - before < 200_000, "6,000 rows are held nowhere"
    finally:
        tracemalloc.stop()


def test_meters_go_to_other_processes(meter):
    again = pickle.loads(pickle.dumps(meter))
    assert again.facts == meter.facts and (again.kinds.kind_V == meter.kinds.kind_V).all()


@pytest.mark.realdata
@pytest.mark.skipif(REALDATA is None, reason="POLYTUNE_REALDATA points to no real data")
def test_a_tokenizer_without_bytes_loses_scripts_and_one_with_bytes_pays_for_them():
    folder = Path(REALDATA)
    lines = (folder / "train/sib200_topic_parallel.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    texts = [
        talk(("user", row["text"]), language={"sat_Olck": "sat", "eng_Latn": "en"}[row["_lang"]])
        for row in rows
        if row["_lang"] in ("sat_Olck", "eng_Latn")
    ]
    names = ("mistral-v3.32k.sentencepiece.model", "t5_cc_all.32000.100extra.sentencepiece.model")
    meters = [make_meter(name, load_tokenizer(folder / "tokenizers" / name)) for name in names]
    english, santali = measure(texts, meters).by_language()
    assert english.per_byte(0) < 0.3 and santali.per_byte(0) > 0.8 and santali.byte_share(0) > 0.85
    assert santali.unknown_share(0) == 0 and santali.unknown_share(1) > 0.3
    assert santali.per_byte(1) < english.per_byte(1), "unknown tokens look cheap"
