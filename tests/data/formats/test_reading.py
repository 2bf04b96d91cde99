import pickle

import pytest
from sample_files import WRITERS, make_rows, read_fields, read_file, write_file

from data.files import find_files
from data.formats.reading import CHUNK_BYTES, CHUNK_ROWS, iter_chunks, read_chunk
from data.schema import DataError

NAMES = [*WRITERS, "x.array_record"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_rows_that_its_own_library_wrote(tmp_path, name):
    assert read_fields(write_file(tmp_path, name, make_rows())) == make_rows()


@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_read_in_any_order_and_process_and_depend_on_content_alone(tmp_path, name):
    rows = make_rows(5000)
    file = find_files(write_file(tmp_path, name, rows).name, tmp_path)[0]
    chunks = list(iter_chunks(file, "auto"))
    assert len(chunks) >= 3
    assert [chunk.first_row for chunk in chunks] == [sum(c.rows for c in chunks[:i]) for i in range(len(chunks))]
    assert all(chunk.rows <= CHUNK_ROWS for chunk in chunks)
    backwards = [list(read_chunk(pickle.loads(pickle.dumps(chunk)))) for chunk in reversed(chunks)]
    assert [len(part) for part in reversed(backwards)] == [chunk.rows for chunk in chunks]
    assert [row.fields for part in reversed(backwards) for row in part] == rows
    (tmp_path / "moved").mkdir()
    moved = find_files(write_file(tmp_path / "moved", name, rows).name, tmp_path / "moved")[0]
    assert [chunk.payload for chunk in iter_chunks(moved, "auto")] == [chunk.payload for chunk in chunks]


@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_bounded_by_bytes_and_a_larger_row_is_one_by_itself(tmp_path, name):
    rows = [{"q": str(i), "a": "x" * size} for i, size in enumerate([10, 5_000_000, 10, *[900_000] * 9, 10])]
    chunks = list(iter_chunks(find_files(write_file(tmp_path, name, rows).name, tmp_path)[0], "auto"))
    assert [row.fields for chunk in chunks for row in read_chunk(chunk)] == rows
    assert all(len(chunk.payload) <= CHUNK_BYTES + 10_000 for chunk in chunks if chunk.rows > 1)
    assert [chunk.rows for chunk in chunks if len(chunk.payload) > CHUNK_BYTES + 10_000] == [1]


def test_rows_are_addressed_by_file_and_line(tmp_path):
    (tmp_path / "x.csv").write_bytes(b'q,a\r\n1,"two\nlines"\r\n2,b\r\n')
    assert [(row.file, row.line) for row in read_file(tmp_path / "x.csv")] == [("x.csv", 2), ("x.csv", 4)]
    (tmp_path / "x.json").write_bytes(b'[\n{"q":\n1},\n\n{"q": 2}, {"q": 3}]')
    assert [row.line for row in read_file(tmp_path / "x.json")] == [2, 5, 5]
    rows = read_file(write_file(tmp_path, "x.parquet", make_rows(30)))
    assert [row.line for row in rows] == list(range(1, 31))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.parquet", "x.array_record"])
def test_one_file_is_shared_by_eight_hosts_row_for_row(tmp_path, name):
    """Where files are what is shared out, fewer files than hosts fail, hang, or leave hosts without rows."""
    [file] = find_files(write_file(tmp_path, name, make_rows(20_000)).name, tmp_path)
    hosts = [list(iter_chunks(file, "auto"))[host::8] for host in range(8)]
    assert all(hosts)
    lines = [row.line for chunks in hosts for chunk in chunks for row in read_chunk(chunk)]
    assert sorted(lines) == list(range(1, 20_001))


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet", "stream.arrow", "x.array_record"])
def test_a_corrupt_record_late_in_a_file_never_ends_it_as_if_it_were_done(tmp_path, name):
    path = write_file(tmp_path, name, make_rows(20_000))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=name):
        read_file(path)
