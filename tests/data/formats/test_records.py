import json

import pytest
from sample_files import make_rows, read_fields, read_file, write_array_record

from data.formats.records import read_records
from data.formats.rows import BadLine
from data.schema import DataError


@pytest.mark.parametrize("options", ["group_size:1", "group_size:7", "group_size:1000", "uncompressed,group_size:5"])
def test_records_are_read_in_order_however_they_are_grouped(tmp_path, options):
    records = [json.dumps(row).encode() for row in make_rows(50)]
    path = write_array_record(tmp_path / "x.array_record", records, options)
    assert read_fields(path) == make_rows(50)
    part = list(read_records(str(path), "x", skip=13, take=20, line=5))
    assert [record.content for record in part] == records[13:33]
    assert [record.line for record in part] == list(range(5, 25))


def test_a_record_that_is_no_json_object_is_bad_and_costs_no_other(tmp_path):
    path = write_array_record(tmp_path / "x.array_record", [b'{"a": 1}', b"\x0a\x12\xff", b"", b'{"a":\n2}'])
    rows = read_file(path)
    assert [(row.line, isinstance(row, BadLine)) for row in rows] == [(1, False), (2, True), (3, True), (4, False)]
    assert rows[3].fields == {"a": 2}


@pytest.mark.parametrize("content", [b"x", b"x" * 100_000, bytes(70_000)])
def test_what_is_no_array_record_file_is_an_error_and_not_an_empty_file(tmp_path, content):
    """Its own reader opens it as one of no records, and only tells when asked."""
    (tmp_path / "x.array_record").write_bytes(content)
    with pytest.raises(DataError, match=r"x.array_record is cut or damaged, or is no ArrayRecord file"):
        read_file(tmp_path / "x.array_record")


def test_a_damaged_record_is_named(tmp_path):
    path = write_array_record(
        tmp_path / "x.array_record", [b"%05d" % i * 40 for i in range(20)], "uncompressed,group_size:1"
    )
    path.write_bytes(path.read_bytes().replace(b"00012", b"00013"))
    with pytest.raises(DataError, match=r"x.array_record is cut or damaged at record 13"):
        list(read_records(str(path), "x.array_record"))
