import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_files import read_fields, read_file

from data.formats.json_rows import NESTING_LIMIT, parse_json
from data.formats.rows import BadLine
from data.schema import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=5,
)


def read_bytes(folder, content, name="x.json"):
    (folder / name).write_bytes(content)
    return read_file(folder / name)


@settings(max_examples=50)
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=4), min_size=1, max_size=5), st.sampled_from([None, 2]))
def test_an_array_is_read_as_json_reads_it(tmp_path_factory, rows, indent):
    path = tmp_path_factory.mktemp("rows") / "x.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=indent), encoding="utf-8", errors="surrogatepass")
    assert read_fields(path) == rows
    path.write_text(json.dumps({"about": "x", "data": rows, "count": 1}, indent=indent))
    assert read_fields(path) == rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"a": 1', "not JSON: Expecting ',' delimiter at column 8"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8 of the row"),
        (b"[1]", "the row is a JSON list, not an object with fields"),
        (b'"text"', "the row is a JSON str, not an object"),
        (b"null", "the row is a JSON NoneType, not an object"),
        (b'{"a": "\x00"}', "not JSON: Invalid control character"),
        (b"\x00" * 20, "not JSON"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "cannot be read"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice in one object"),
        (b'{"m": [{"role": "user", "content": "x", "content": "y"}]}', "the key 'content' occurs twice in one object"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data at column 10"),
        (b"{'a': 1}", "not JSON: Expecting property name enclosed in double quotes"),
    ],
)
def test_a_row_that_is_no_object_is_bad_and_costs_no_other(tmp_path, row, reason):
    first, bad, last = read_bytes(tmp_path, b'{"x": 1}\n' + row + b'\n{"x": 2}\n', "x.jsonl")
    assert (first.fields, last.fields, last.line) == ({"x": 1}, {"x": 2}, 3)
    assert isinstance(bad, BadLine)
    assert reason in bad.reason
    assert (bad.file, bad.line) == ("x.jsonl", 2)
    assert bad.excerpt == row.decode(errors="replace")[:200]


def test_a_key_given_twice_is_bad_where_json_would_keep_the_last_silently():
    assert json.loads(b'{"a": "kept?", "a": "b"}') == {"a": "b"}
    [fault] = parse_json(b'{"a": "kept?", "a": "b"}')
    assert "twice" in fault.reason


def test_nesting_has_one_limit_however_deep_the_program_is():
    def nested(depth):
        return b'{"a": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"

    def below(frames, content):
        return parse_json(content) if frames == 0 else below(frames - 1, content)

    for frames in (0, 500):
        assert isinstance(below(frames, nested(NESTING_LIMIT))[0], dict)
        assert "nested more than" in below(frames, nested(NESTING_LIMIT + 1))[0].reason
    assert isinstance(parse_json(b'{"a": [' + b"{}," * 500 + b"{}]}")[0], dict)


def test_nan_lone_surrogates_and_large_numbers_are_values_like_others(tmp_path):
    [row] = read_bytes(tmp_path, b'{"a": NaN, "b": "\\ud800", "c": 1' + b"0" * 400 + b"}", "x.jsonl")
    assert row.fields["a"] != row.fields["a"]
    assert (row.fields["b"], row.fields["c"]) == ("\ud800", 10**400)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'[{"a": 1}, {"a": 2}',
            "x.json:1: the file ends where `,` or `]` should follow the row that begins in line 1",
        ),
        (b'[{"a": 1},\n{"a": ', "x.json:2: the file ends inside the row that begins in line 2; it is cut"),
        (b'[{"a": 1},\n{"a": "x', "x.json:2: the file ends inside the row that begins in line 2; it is cut"),
        (b'[{"a": 1},\n', "x.json:2: a row of the JSON array is missing before `,` or `]`, or the file is cut"),
        (b'[{"a": 1}\n{"a": 2}]', "x.json:2: b'{' stands where `,` or `]` should follow the row that begins in line 1"),
        (b'[{"a": 1},\n,{"a": 2}]', "x.json:2: a row of the JSON array is missing"),
        (b'[{"a": 1}]\n[]', "x.json:2: something follows the end of the JSON"),
        (b'{"a": 1}\n{"a": 2}\n', "x.json:2: the file holds one object after the other; set format: jsonl"),
        (b'{"a": 1}', "x.json:1: the file is one object without an array `data`"),
        (b'{"data": 5}', "x.json:1: the file is one object without an array `data`"),
        (b'{"data": [{"a": 1}], "test": [{"a": 2}]}', 'beside `data` the object has "test"'),
        (b'{"data": [{"a": 1}], "data": [{"a": 2}]}', 'beside `data` the object has "data"'),
        (b'{"data": [{"a": 1}', "x.json:1: the file ends where `,` or `]` should follow"),
        (b'{"data": [{"a": 1}]', "x.json:1: not JSON: `,` or `}` should stand here"),
        (b'{"data" [{"a": 1}]}', "x.json:1: not JSON: a name and `:` should stand here"),
        (b"q,a\n1,2\n", "x.json:1: begins with b'q', not with an array of objects; set `format`"),
    ],
)
def test_an_array_that_stops_or_is_broken_between_rows_is_an_error_with_file_and_line(tmp_path, content, message):
    with pytest.raises(DataError) as error:
        read_bytes(tmp_path, content)
    assert message in str(error.value)


def test_a_broken_element_costs_no_other(tmp_path):
    rows = read_bytes(
        tmp_path, b'[{"a": 1},\n{"a": nil},\n7,\n{"a": [1, {"b": "]}"}]}, ' + b"[" * 50 + b"]" * 50 + b"]"
    )
    assert [(row.line, isinstance(row, BadLine)) for row in rows] == [(1, 0), (2, 1), (3, 1), (4, 0), (4, 1)]
    assert rows[3].fields == {"a": [1, {"b": "]}"}]}


def test_100_000_brackets_in_an_array_end_soon(tmp_path):
    started = time.process_time()
    [bad, good] = read_bytes(tmp_path, b"[" + b"[" * 100_000 + b"]" * 100_000 + b', {"a": 1}]')
    assert "cannot be read" in bad.reason
    assert good.fields == {"a": 1}
    with pytest.raises(DataError, match="it is cut"):
        read_bytes(tmp_path, b"[" * 100_000)
    assert time.process_time() - started < 3


def test_a_hundred_megabytes_of_brackets_are_refused_at_once(tmp_path):
    """Each was looked at by itself, and kept by itself: minutes, and gigabytes, for a file that holds nothing."""
    (tmp_path / "x.json").write_bytes(b'[{"a": 1},\n' + b"[" * (100 << 20))
    started = time.process_time()
    with pytest.raises(DataError, match=r"x.json:2: a row is nested more than 100,000 deep"):
        read_file(tmp_path / "x.json")
    assert time.process_time() - started < 3
