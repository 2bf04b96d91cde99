import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_files import read_fields, read_file

from data.formats.rows import BadLine
from data.schema import DataError

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))


def read_bytes(folder, content, name="x.csv"):
    (folder / name).write_bytes(content)
    return read_file(folder / name)


@given(
    st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1)),
    st.sampled_from([("x.csv", ","), ("x.tsv", "\t")]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    st.sampled_from(["\n", "\r\n"]),
)
def test_a_quoted_table_is_read_as_it_was_written(tmp_path_factory, rows, kind, quoting, end):
    name, separator = kind
    names = [f"c{i}" for i in range(len(rows[0]))]
    sink = io.StringIO(newline="")
    csv.writer(sink, delimiter=separator, quoting=quoting, lineterminator=end).writerows([names, *rows])
    path = tmp_path_factory.mktemp("rows") / name
    path.write_bytes(sink.getvalue().encode())
    assert [list(row.values()) for row in read_fields(path)] == rows


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b"1,2", ["1", "2"]),
        (b'"1","2"\r', ["1", "2"]),
        (b",", ["", ""]),
        (b'"",""', ["", ""]),
        (b' 1 ," 2 "', [" 1 ", " 2 "]),
        (b'"a ""quoted"" word",\'x\'', ['a "quoted" word', "'x'"]),
        (b'5" pipe,he said "no"', ['5" pipe', 'he said "no"']),
        (b'"a,b","c\nd\r\ne"', ["a,b", "c\nd\r\ne"]),
        ('"你好\u2028","\x85"'.encode(), ["你好\u2028", "\x85"]),
        (b'"' + b"x" * 200_000 + b'",1', ["x" * 200_000, "1"]),
    ],
)
def test_fields_are_read_as_rfc_4180_has_them(tmp_path, line, values):
    first, row, last = read_bytes(tmp_path, b"q,a\n0,0\n" + line + b"\n9,9\n")
    assert row.fields == dict(zip("qa", values, strict=True))
    assert (first.line, row.line, last.line) == (2, 3, 4 + line.count(b"\n"))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1", "the row has 1 fields, but the header has 2"),
        (b"1,2,3", "the row has 3 fields, but the header has 2"),
        (b'"1"x,2', "field 1 goes on after its closing quote; double the quotes inside it"),
        (b'1,"2" ', "field 2 goes on after its closing quote"),
        (b"1,\xff", "not UTF-8 at byte 3 of the row"),
        (b"1,\x00", "the row holds a NUL byte"),
        (b"", "the line is blank"),
    ],
)
def test_a_bad_row_costs_no_other(tmp_path, line, reason):
    first, bad, last = read_bytes(tmp_path, b"q,a\n0,0\n" + line + b"\n9,9\n")
    assert (first.fields, last.fields) == ({"q": "0", "a": "0"}, {"q": "9", "a": "9"})
    assert isinstance(bad, BadLine)
    assert bad.line == 3
    assert reason in bad.reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"q,a,q\n1,2,3\n", "x.csv:1: 2 columns are named 'q'; give each its own name"),
        (b"q,,a\n1,2,3\n", "x.csv:1: column 2 has no name; give it one"),
        (b"q, \n1,2\n", "x.csv:1: column 2 has no name"),
        (b"\nq,a\n1,2\n", "x.csv:1: the header cannot be read: the line is blank"),
        (b"q,\xff\n1,2\n", "x.csv:1: the header cannot be read: not UTF-8"),
        (b'q,a\n1,"2\n3,4\n5,6\n', "x.csv:2: a quoted field of the row that begins here never ends"),
        (b'q,a\n1,2\n"', "x.csv:3: a quoted field of the row that begins here never ends"),
    ],
)
def test_a_table_without_a_header_or_an_end_is_an_error(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        read_bytes(tmp_path, content)
    assert message in str(error.value)


def test_a_quote_without_end_does_not_fill_the_memory(tmp_path):
    with pytest.raises(
        DataError, match=r"x.csv:2: the row has 68,000,000 bytes, .*; a quoted field of it may have no end"
    ):
        read_bytes(tmp_path, b'q,a\n"' + (b"x" * 999_999 + b"\n") * 70)


def test_commas_and_quotes_in_a_tsv_are_text(tmp_path):
    [row] = read_bytes(tmp_path, b'q\ta\n1,2\t5" x\n', "x.tsv")
    assert row.fields == {"q": "1,2", "a": '5" x'}


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_last_row_of_empty_fields_does_not_vanish_from_a_tsv(tmp_path, end):
    """It is nothing but tabs, which used to pass for the blank line that files end with: gone, and not counted."""
    (tmp_path / "x.tsv").write_bytes(f"q\ta\n1\t2\n\t{end}".encode())
    assert read_fields(tmp_path / "x.tsv") == [{"q": "1", "a": "2"}, {"q": "", "a": ""}]
