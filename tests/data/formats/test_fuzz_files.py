"""Damaged files end in rows as they were written, in bad lines, or in an error that names the file; in nothing else."""

import json
import random
import time

import pytest
from sample_files import WRITERS, make_rows, read_file, write_array_record, write_file

from data.formats.rows import BadLine
from data.schema import DataError

SEEDS = range(120)
CASE_S = 2.0
"""Longest time of a processor that one case may take; all take milliseconds."""

CHECKED = (
    "x.jsonl.gz",
    "x.jsonl.zst",
    "x.ndjson.bz2",
    "x.jsonl.xz",
    "x.json.gz",
    "x.csv.zst",
    "x.parquet",
    "x.array_record",
)
"""Formats with checksums, as written here: a row that is read is a row that was written."""
TEXT = ("x.jsonl", "x.json", "data.json", "x.csv", "x.tsv")
"""Nothing tells a changed letter from another, or a text cut after a row from a shorter one."""
COLUMNS = ("stream.arrow", "file.arrow", "x.feather")
"""No checksums: a bit can change names, offsets and compressed blocks, so any value; never how many rows there are."""


def flip(content: bytearray, at: int, source: random.Random) -> None:
    content[at] ^= 1 << source.randrange(8)


def cut(content: bytearray, at: int, source: random.Random) -> None:
    del content[max(at, 1) :]


def splice(content: bytearray, at: int, source: random.Random) -> None:
    content[at:at] = source.randbytes(source.randrange(1, 9))


def drop(content: bytearray, at: int, source: random.Random) -> None:
    del content[at : at + source.randrange(1, 20)]


def repeat(content: bytearray, at: int, source: random.Random) -> None:
    content[at:at] = content[at : at + source.randrange(1, 20)]


def blank(content: bytearray, at: int, source: random.Random) -> None:
    content[at : at + 8] = bytes(len(content[at : at + 8]))


MUTATIONS = (flip, cut, splice, drop, repeat, blank)


def read_damaged(path):
    """Good rows' values, how many are bad, and whether an error ended it."""
    started = time.process_time()
    try:
        rows = read_file(path)
    except DataError as error:
        assert path.name in str(error)
        return None, 0
    finally:
        assert time.process_time() - started < CASE_S
    bad = [row for row in rows if isinstance(row, BadLine)]
    assert all(row.file == path.name and row.line >= 1 and row.reason for row in bad)
    return [tuple(row.fields.values()) for row in rows if not isinstance(row, BadLine)], len(bad)


def mutated(tmp_path, name, seed):
    source = random.Random(f"{name} {seed}")
    path = write_file(tmp_path, name, make_rows())
    content = bytearray(path.read_bytes())
    # ArrayRecord pads with zeros, where little can go wrong.
    places = [at for at, byte in enumerate(content) if byte] if name == "x.array_record" else range(len(content))
    mutation = MUTATIONS[seed % len(MUTATIONS)]
    mutation(content, source.choice(places), source)
    path.write_bytes(content)
    return path, mutation


@pytest.mark.parametrize("name", CHECKED)
def test_a_mutated_file_with_checksums_is_read_unchanged_or_refused(tmp_path, name):
    written = [tuple(row.values()) for row in make_rows()]
    refused = 0
    for seed in SEEDS:
        rows, bad = read_damaged(mutated(tmp_path, name, seed)[0])
        refused += rows is None
        assert rows in (None, written), seed
        assert not bad
    assert refused > len(SEEDS) / 2


@pytest.mark.parametrize("name", TEXT)
def test_a_mutated_text_costs_the_rows_that_it_touches(tmp_path, name):
    written = [tuple(row.values()) for row in make_rows()]
    for seed in SEEDS:
        path, mutation = mutated(tmp_path, name, seed)
        rows, bad = read_damaged(path)
        if rows is None:
            continue
        assert sum(row not in written for row in rows) <= 2, seed
        if not bad and mutation is not cut:
            assert sum(row not in rows for row in written) <= 3, seed
        if mutation is cut:
            assert rows[:-1] == written[: len(rows[:-1])], seed


@pytest.mark.parametrize("name", COLUMNS)
def test_a_mutated_file_of_columns_never_has_fewer_rows(tmp_path, name):
    count = len(make_rows())
    ends = [read_damaged(mutated(tmp_path, name, seed)[0]) for seed in SEEDS]
    assert all(rows is None or len(rows) + bad == count for rows, bad in ends)
    assert any(rows is None for rows, _ in ends)


@pytest.mark.parametrize("name", sorted({*WRITERS, "x.array_record"} - {"x.jsonl", "x.csv", "x.tsv"}))
def test_no_file_cut_anywhere_passes_for_a_shorter_one(tmp_path, name):
    path = write_file(tmp_path, name, make_rows())
    content = path.read_bytes()
    for length in random.Random(name).sample(range(1, len(content)), 60):
        path.write_bytes(content[:length])
        rows, _ = read_damaged(path)
        assert rows in (None, [tuple(row.values()) for row in make_rows()]), length


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.array_record"])
def test_values_of_any_type_leave_the_other_rows_alone(tmp_path, name):
    values = [None, True, -0.5, 10**40, [], {}, [[1], {"x": None}], "\ud800", {"messages": [{"role": 1}]}, "\x00", ""]
    for seed in range(40):
        source = random.Random(seed)
        rows = make_rows()
        rows[source.randrange(len(rows))] = {source.choice("qxé"): source.choice(values) for _ in range(3)}
        path = tmp_path / name
        if name == "x.json":
            path.write_text(json.dumps(rows))
        elif name == "x.jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            write_array_record(path, [json.dumps(row).encode() for row in rows])
        assert [row.fields for row in read_file(path)] == rows
