"""Pieces of work: small enough to share out, few enough for a terabyte, the same for a source that hardly grew."""

import pytest

from data.files import DataFile
from data.formats.rows import Chunk
from data.works import group_chunks

MIB = 1 << 20


def chunks(count, *, size=MIB, rows=100):
    file = DataFile(url="/f.jsonl", name="f.jsonl", size=1, version="1")
    return [
        Chunk(file=file, format="jsonl", first_row=at * rows, rows=rows, payload=bytes(size)) for at in range(count)
    ]


@pytest.mark.parametrize(
    ("size", "chunks_a_piece"),
    [(0, 2), (5 * MIB, 2), (511 * MIB, 2), (512 * MIB, 4), (1024 * MIB, 8), (4096 * MIB, 32), (1 << 50, 32)],
)
def test_pieces_grow_with_the_source_by_powers_of_two_and_no_further(size, chunks_a_piece):
    pieces = list(group_chunks(3, chunks(70), size))
    assert [len(piece.chunks) for piece in pieces[:-1]] == [chunks_a_piece] * (len(pieces) - 1)
    assert [chunk.first_row for piece in pieces for chunk in piece.chunks] == list(range(0, 7000, 100))
    assert {piece.source for piece in pieces} == {3}


def test_a_source_that_grows_a_little_keeps_the_pieces_it_had():
    before, after = (list(group_chunks(0, chunks(count), 600 * MIB + count)) for count in (40, 41))
    assert after[: len(before)] == before


def test_a_piece_of_tiny_rows_ends_by_their_number():
    pieces = list(group_chunks(0, chunks(12, size=10, rows=2000), 120))
    assert [piece.rows for piece in pieces] == [10_000, 10_000, 4_000]
