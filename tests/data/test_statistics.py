"""Statistics of parts add up to those of the whole, exactly, and come back from disk as they were."""

import functools
import json
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.schema import DataError
from data.statistics import (
    LONGEST,
    Cell,
    CorpusStatistics,
    LongRow,
    TokenCounts,
    TokenizerFacts,
    read_statistics,
    write_statistics,
)

FACTS = tuple(
    TokenizerFacts(name=name, hash=name * 16, vocab_size=300, has_unknown=True, byte_kind="pieces") for name in "ab"
)
COUNT = st.integers(0, 2**60)


@st.composite
def cells(draw):
    source, language = draw(st.sampled_from(("s", "t"))), draw(st.sampled_from(("en", "th")))
    counts = st.builds(TokenCounts, prompt=COUNT, answer=COUNT, text=COUNT, unknown=COUNT, spelled_in_bytes=COUNT)
    rows = st.builds(
        LongRow, tokens=st.integers(0, 3), characters=st.integers(0, 2), row=st.sampled_from(("x:1", "x:2")),
        source=st.just(source), language=st.just(language),
    )  # fmt: skip
    longest = st.lists(rows, max_size=LONGEST).map(
        lambda found: tuple(sorted(found, key=lambda r: (-r.tokens, r.row, r.characters)))
    )
    return Cell(
        source=source, language=language, rows=draw(COUNT), turns=draw(COUNT), characters=draw(COUNT),
        size_bytes=draw(COUNT), words=draw(COUNT) if language == "en" else None,
        tokens=(draw(counts), draw(counts)), longest=(draw(longest), draw(longest)),
    )  # fmt: skip


parts = st.lists(cells(), max_size=3, unique_by=lambda cell: (cell.source, cell.language)).map(
    lambda found: CorpusStatistics(
        tokenizers=FACTS, cells=tuple(sorted(found, key=lambda cell: (cell.source, cell.language)))
    )
)


@given(parts, parts, parts)
def test_merging_is_associative_and_commutative_to_the_last_integer(a, b, c):
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(b) == b.merge(a)
    assert a.merge(CorpusStatistics(tokenizers=FACTS)) == a


@given(st.lists(parts, min_size=1, max_size=4))
def test_sums_over_languages_and_sources_are_those_of_the_cells(found):
    whole = functools.reduce(CorpusStatistics.merge, found)
    for summed in (whole.by_language(), whole.by_source()):
        assert sum(cell.rows for cell in summed) == sum(cell.rows for part in found for cell in part.cells)
        assert sum(cell.tokens[1].total for cell in summed) == sum(c.tokens[1].total for p in found for c in p.cells)


@given(parts)
def test_what_is_written_is_read_back(found):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "statistics.json"
        write_statistics(found, path)
        assert read_statistics(path) == found
        assert [row["language"] for row in json.loads(path.read_bytes())["languages"]] == sorted(
            {cell.language for cell in found.cells}
        )


def cell(**fields):
    counts = TokenCounts(prompt=6, answer=3, text=1, unknown=2, spelled_in_bytes=5)
    known = {
        "source": "s", "language": "en", "rows": 1, "turns": 2, "characters": 20, "size_bytes": 40, "words": 4,
        "tokens": (counts,), "longest": ((),),
    }  # fmt: skip
    return Cell(**{**known, **fields})


def test_ratios_are_of_all_tokens():
    one = cell()
    assert (one.per_byte(0), one.per_character(0), one.per_word(0)) == (0.25, 0.5, 2.5)
    assert (one.unknown_share(0), one.byte_share(0), one.answer_share(0)) == (0.2, 0.5, 0.3)
    assert cell(words=None).per_word(0) is None, "a script without spaces has no words to count"
    empty = cell(size_bytes=0, characters=0, words=0, tokens=(TokenCounts(),))
    assert (empty.per_byte(0), empty.per_word(0), empty.unknown_share(0)) == (None, None, None)


def test_statistics_by_other_tokenizers_do_not_add_up():
    with pytest.raises(DataError, match=r"by a a+.* and by b b+ cannot be merged; count with the same"):
        CorpusStatistics(tokenizers=FACTS[:1]).merge(CorpusStatistics(tokenizers=FACTS[1:]))


def test_the_json_says_what_it_counts_and_gives_ratios(tmp_path):
    statistics = CorpusStatistics(tokenizers=FACTS[:1], cells=(cell(), cell(language="th", words=None)))
    write_statistics(statistics, tmp_path / "s.json")
    table = json.loads((tmp_path / "s.json").read_bytes())
    english, thai = table["languages"]
    assert (english["rows"], english["words"], english["tokenizers"][0]["per_word"]) == (1, 4, 2.5)
    assert (thai["words"], thai["tokenizers"][0]["per_word"], thai["tokenizers"][0]["per_character"]) == (
        None,
        None,
        0.5,
    )
    assert "template" in table["about"]["tokens"] and "code points" in table["about"]["characters"]


@pytest.mark.parametrize("damage", ["missing", "cut", "format", "tokenizers", "number"])
def test_a_damaged_file_is_an_error_with_its_path(tmp_path, damage):
    path = tmp_path / "statistics.json"
    write_statistics(CorpusStatistics(tokenizers=FACTS[:1], cells=(cell(),)), path)
    table = json.loads(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        change = {"format": {"format": 9}, "tokenizers": {"tokenizers": []}, "number": {"cells": [{"rows": "x"}]}}
        path.write_bytes(msgspec.json.encode(table | change[damage]))
    with pytest.raises(DataError, match=r"statistics\.json .*write it again"):
        read_statistics(path)


def test_no_rows_at_all_is_an_error():
    with pytest.raises(DataError, match=r"check data\.sources"):
        CorpusStatistics(tokenizers=FACTS).total()
