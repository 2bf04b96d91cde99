import bz2
import csv
import gzip
import json
import lzma
import time
import tracemalloc

import pytest
import zstandard
from sample_files import compress_zstd, read_fields, read_file

import data.formats.text
from data.files import find_files
from data.formats.reading import iter_chunks, read_chunk
from data.formats.rows import BadLine
from data.schema import DataError

GOOD = b'{"a": "b"}'


def read_bytes(folder, name, content):
    (folder / name).write_bytes(content)
    return read_file(folder / name)


def test_a_byte_order_mark_crlf_and_final_blank_lines_are_no_fault(tmp_path):
    for name, content in {
        "x.jsonl": b"\xef\xbb\xbf" + GOOD + b"\r\n" + GOOD + b"\n\n  \r\n\n",
        "x.json": b"\xef\xbb\xbf\r\n[" + GOOD + b",\r\n" + GOOD + b"]\r\n\n",
        "x.csv": b"\xef\xbb\xbfa\r\nb\r\nb\r\n\r\n  \n",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert read_fields(tmp_path / name) == [{"a": "b"}] * 2


def test_only_a_line_feed_ends_a_row(tmp_path):
    content = '{"a": "x\u2028y\u2029z\x85w"}\n{"a": ""}'.encode()
    assert [row.fields["a"] for row in read_bytes(tmp_path, "x.jsonl", content)] == ["x\u2028y\u2029z\x85w", ""]


def test_blank_lines_between_rows_are_bad_and_keep_their_line(tmp_path):
    rows = read_bytes(tmp_path, "x.jsonl", GOOD + b"\n\n \n" + GOOD + b"\n\n")
    assert [(row.line, isinstance(row, BadLine)) for row in rows] == [(1, False), (2, True), (3, True), (4, False)]
    assert "line is blank" in rows[1].reason


@pytest.mark.parametrize("suffix", ["gz", "zst", "bz2", "xz"])
def test_a_cut_stream_does_not_pass_as_a_shorter_file_and_several_are_one(tmp_path, suffix):
    """zstd's own stream reader ends without a word where a stream is cut; bz2's and lzma's pass over what follows."""
    compress = {"gz": gzip.compress, "zst": compress_zstd, "bz2": bz2.compress, "xz": lzma.compress}[suffix]
    name, stream = f"x.jsonl.{suffix}", compress(GOOD + b"\n")
    assert len(read_bytes(tmp_path, name, stream * 3)) == 3
    for cut in (1, 5, len(stream) // 2, len(stream) - 1):
        with pytest.raises(DataError, match=rf"{name}( is cut: its|: its compressed stream is damaged)"):
            read_bytes(tmp_path, name, stream + stream[:cut])
    with pytest.raises(DataError, match=rf"{name}: its compressed stream is damaged"):
        read_bytes(tmp_path, name, stream + b"something else that is long enough to be no header")


def test_zeros_after_gzip_and_empty_and_skippable_frames_are_no_fault(tmp_path):
    assert len(read_bytes(tmp_path, "x.jsonl.gz", gzip.compress(GOOD) + bytes(512))) == 1
    skippable = b"\x50\x2a\x4d\x18\x05\x00\x00\x00hello"
    content = compress_zstd(b"") + skippable + compress_zstd(GOOD) + skippable
    assert len(read_bytes(tmp_path, "x.jsonl.zst", content)) == 1


def test_zstd_without_a_content_size_or_checksum_is_read(tmp_path):
    compressor = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    assert len(read_bytes(tmp_path, "x.jsonl.zst", compressor.compress(GOOD) + compressor.flush())) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", GOOD.decode().encode("utf-16"), "is UTF-16, not UTF-8; convert it: iconv -f UTF-16"),
        ("x.jsonl", GOOD.decode().encode("utf-16-le"), "NUL byte.*convert it to UTF-8"),
        ("x.json", GOOD.decode().encode("utf-16-be"), "NUL byte.*convert it to UTF-8"),
        ("x.csv", "a,b\n1,2\n".encode("utf-32"), "is UTF-"),
        ("x.jsonl", gzip.compress(GOOD, mtime=0), "no text but gzip; end its name in .gz"),
        ("x.csv", compress_zstd(GOOD), "no text but zstd; end its name in .zst"),
        ("x.json", b"PAR1" + bytes(20), "no text but Parquet; set format: parquet"),
        ("x.jsonl.gz", GOOD * 5, "compressed stream is damaged"),
        ("x.jsonl", b"\xef\xbb\xbf", "is empty; give it rows or take it out"),
        ("x.jsonl", b"\n \n\t\r\n", "is empty; give it rows or take it out"),
        ("x.jsonl.gz", gzip.compress(b"", mtime=0), "is empty; give it rows or take it out"),
        ("x.csv", b"a,b\r\n", "is empty; give it rows or take it out"),
        ("x.json", b" [ ] ", "is empty; give it rows or take it out"),
    ],
)
def test_what_is_no_text_or_has_no_rows_is_an_error_that_names_the_file(tmp_path, name, content, message):
    with pytest.raises(DataError, match=rf"^{name}.*{message}"):
        read_bytes(tmp_path, name, content)


def test_a_split_is_refused_where_there_are_none(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r"x.jsonl: split 'train' is asked for, but jsonl files have no splits"):
        read_file(tmp_path / "x.jsonl", split="train")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_a_line_of_100_megabytes_is_one_bad_row_in_little_memory(tmp_path, name):
    huge = b"x" * 100_000_000
    with open(tmp_path / name, "wb") as file:
        file.writelines(
            [b'{"a": "', huge, b'"}\n', GOOD]
            if name == "x.jsonl"
            else [b'[{"a": "', huge, b'"},\n', GOOD, b"]"]
            if name == "x.json"
            else [b"a\n", huge, b"\nb\n"]
        )
    del huge
    started = time.process_time()
    tracemalloc.start()
    try:
        bad, good = read_file(tmp_path / name)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (bad.line, good.fields, good.line) == (1 + (name == "x.csv"), {"a": "b"}, 2 + (name == "x.csv"))
    size = 100_000_000 + (0 if name == "x.csv" else 9)
    assert bad.reason.startswith(f"the row has {size:,} bytes, more than the 67,108,864 that are read")
    assert len(bad.excerpt) == 200
    assert peak < 140e6
    assert time.process_time() - started < 10


def test_a_stream_of_50_megabytes_is_read_in_flat_memory(tmp_path):
    line = b'{"q": "' + b"Habari ya asubuhi? " * 20 + b'", "n": %d}\n'
    count = 50_000_000 // len(line)
    with gzip.open(tmp_path / "x.jsonl.gz", "wb", compresslevel=1) as file:
        for start in range(0, count, 10_000):
            file.write(b"".join(line % number for number in range(start, start + 10_000)))
    [file] = find_files("x.jsonl.gz", tmp_path)
    tracemalloc.start()
    try:
        chunks = iter_chunks(file, "auto")
        total = sum(chunk.rows for chunk in chunks)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == -(-count // 10_000) * 10_000
    assert peak < 20e6


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_where_blocks_are_cut_changes_nothing(tmp_path, monkeypatch, block):
    monkeypatch.setattr(data.formats.text, "BLOCK_BYTES", block)
    texts = ["", 'a"b', "c\\", '\\"', "{[]}", "é🙂", "\\\\\\", "x\ny"]
    rows = [{"k": text, "n": {"deep": [text, [text]]}} for text in texts]
    (tmp_path / "x.json").write_text(json.dumps(rows, ensure_ascii=False, indent=2))
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert read_fields(tmp_path / "x.json") == read_fields(tmp_path / "x.jsonl") == rows
    with open(tmp_path / "x.csv", "w", newline="") as file:
        csv.writer(file).writerows([["k", "l"], *([text, text] for text in texts)])
    assert read_fields(tmp_path / "x.csv") == [{"k": text, "l": text} for text in texts]


def test_chunks_hold_their_bad_rows(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"{\n" * 2500 + GOOD)
    first, second = iter_chunks(find_files("x.jsonl", tmp_path)[0], "auto")
    assert (first.rows, second.first_row, second.rows) == (2000, 2000, 501)
    assert [row.line for row in read_chunk(second)] == list(range(2001, 2502))
