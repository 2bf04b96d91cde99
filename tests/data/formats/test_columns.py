import datetime
import decimal
import re
import struct
import uuid

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import pytest
from sample_files import make_rows, read_fields, read_file, write_file

from data.files import find_files
from data.formats.reading import iter_chunks
from data.formats.rows import BadLine
from data.schema import DataError


def write_table(path, table, **options):
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path, **options)
    else:
        with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
            writer.write_table(table, **options)
    return path


NAMES = ("x.parquet", "x.arrow")


@pytest.mark.parametrize("name", NAMES)
def test_nested_values_and_times_are_plain(tmp_path, name):
    messages = [
        {"role": "user", "content": "你好", "train": None},
        {"role": "assistant", "content": "", "train": False},
    ]
    zone = datetime.timezone(datetime.timedelta(hours=3))
    table = pyarrow.table(
        {
            "messages": [messages, []],
            "day": [datetime.date(2024, 2, 29), None],
            "at": pyarrow.array([datetime.datetime(2024, 2, 29, 1, 2, 3, 4000)] * 2, pyarrow.timestamp("ns")),
            "zoned": pyarrow.array(
                [datetime.datetime(2024, 2, 29, 1, tzinfo=zone), None], pyarrow.timestamp("us", "+03:00")
            ),
            "price": [decimal.Decimal("1.50"), None],
            "map": pyarrow.array([[("sw", 1), ("zh", 2)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "bytes": [b"\xe4\xbd\xa0", b""],
            "category": pyarrow.array(["a", "b"]).dictionary_encode(),
            "large": pyarrow.array(["x", None], pyarrow.large_string()),
            "number": pyarrow.array([1.5, float("inf")], pyarrow.float32()),
            "id": pyarrow.array([uuid.UUID(int=1)] * 2, pyarrow.uuid()),
        }
    )
    assert read_fields(write_table(tmp_path / name, table)) == [
        {
            "messages": messages,
            "day": "2024-02-29",
            "at": "2024-02-29T01:02:03.004000",
            "zoned": "2024-02-29T01:00:00+03:00",
            "price": "1.50",
            "map": {"sw": 1, "zh": 2},
            "bytes": "你",
            "category": "a",
            "large": "x",
            "number": 1.5,
            "id": "00000000-0000-0000-0000-000000000001",
        },
        {
            "messages": [],
            "day": None,
            "at": "2024-02-29T01:02:03.004000",
            "zoned": None,
            "price": None,
            "map": {},
            "bytes": "",
            "category": "b",
            "large": None,
            "number": float("inf"),
            "id": "00000000-0000-0000-0000-000000000001",
        },
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (pyarrow.array([b"a", b"\xff\xfe", b"c"]), "column 'x' cannot be read as text or plain values: 'utf-8' codec"),
        (
            pyarrow.array([[("k", 1)], [("k", 1), ("k", 2)], []], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
            "column 'x' cannot be read as text or plain values: .*duplicate key",
        ),
        (pyarrow.array([0, 1, 0], pyarrow.timestamp("ns")), "column 'x' cannot be read as text or plain values"),
        (
            pyarrow.StringArray.from_buffers(
                3, pyarrow.py_buffer(struct.pack("<4i", 0, 1, 2, 3)), pyarrow.py_buffer(b"a\xffc")
            ),
            "a value is damaged: .*UTF8",
        ),
    ],
)
def test_a_value_that_is_no_text_costs_its_row_alone(tmp_path, name, values, reason):
    table = pyarrow.table({"q": ["1", "2", "3"], "x": values})
    rows = read_file(write_table(tmp_path / name, table))
    assert [(row.line, isinstance(row, BadLine)) for row in rows] == [(1, False), (2, True), (3, False)]
    assert re.search(reason, rows[1].reason)
    assert rows[2].fields["q"] == "3"


@pytest.mark.parametrize("name", NAMES)
def test_two_columns_of_one_name_are_refused(tmp_path, name):
    table = pyarrow.Table.from_arrays([pyarrow.array(["1"]), pyarrow.array(["2"])], names=["q", "q"])
    with pytest.raises(DataError, match=f"{name}: 2 columns are named 'q'"):
        read_file(write_table(tmp_path / name, table))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_without_rows_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match=f"{name} is empty; give it rows"):
        read_file(write_table(tmp_path / name, pyarrow.table({"q": pyarrow.array([], pyarrow.string())})))


def test_a_stream_cut_between_record_batches_does_not_pass_as_a_shorter_one(tmp_path):
    """pyarrow itself reads it without a word."""
    path = write_table(tmp_path / "x.arrow", pyarrow.Table.from_pylist(make_rows()), max_chunksize=8)
    whole = path.read_bytes()
    boundary = whole.rfind(b"\xff\xff\xff\xff", 0, len(whole) - 8)
    path.write_bytes(whole[:boundary])
    assert pyarrow.ipc.open_stream(path.read_bytes()).read_all().num_rows < len(make_rows())
    with pytest.raises(DataError, match=r"x.arrow is cut, or its writer was not closed: the stream has no end mark"):
        read_file(path)
    path.write_bytes(whole + b"x")
    with pytest.raises(DataError, match=r"x.arrow: something follows the end of the Arrow stream at byte"):
        read_file(path)


def test_a_wrong_page_checksum_names_the_row_group(tmp_path):
    rows = [{"q": f"unlikely text {i}"} for i in range(30)]
    table = pyarrow.Table.from_pylist(rows)
    options = {"row_group_size": 10, "compression": "none", "use_dictionary": False, "write_statistics": False}
    path = write_table(tmp_path / "x.parquet", table, write_page_checksum=True, **options)
    path.write_bytes(path.read_bytes().replace(b"unlikely text 15", b"unlikely text 16"))
    with pytest.raises(DataError, match=r"x.parquet is cut or damaged in row group 1 .*; copy or write it again"):
        read_file(path)


def test_a_category_of_many_values_is_not_sent_with_every_row(tmp_path):
    column = pyarrow.array([f"{i} {'x' * 1000}" for i in range(8000)]).dictionary_encode()
    write_table(tmp_path / "x.arrow", pyarrow.table({"q": column}))
    chunks = list(iter_chunks(find_files("x.arrow", tmp_path)[0], "auto"))
    assert [chunk.rows for chunk in chunks] == [2000] * 4
    assert sum(len(chunk.payload) for chunk in chunks) < 9_000_000


def test_row_groups_of_any_size_give_rows_in_order(tmp_path):
    rows = [{"q": str(i)} for i in range(5000)]
    for size in (1, 7, 1999, 2000, 2001, 5000):
        path = write_table(tmp_path / f"{size}.parquet", pyarrow.Table.from_pylist(rows), row_group_size=max(size, 50))
        assert read_fields(path) == rows


def test_lz4_feather_and_files_of_no_known_kind(tmp_path):
    pyarrow.feather.write_feather(
        pyarrow.Table.from_pylist(make_rows()), str(tmp_path / "x.feather"), compression="lz4"
    )
    assert read_fields(tmp_path / "x.feather") == make_rows()
    (tmp_path / "x.arrow").write_bytes(b"hello, world, this is no arrow file")
    (tmp_path / "x.parquet").write_bytes(b"hello, world, this is no parquet file")
    for name in NAMES:
        with pytest.raises(DataError, match=f"{name} is cut or damaged"):
            read_file(tmp_path / name)


def test_bytes_of_memory_do_not_grow_with_the_file(tmp_path):
    rows = [{"q": f"{i} " + "x" * 1000} for i in range(20_000)]
    path = write_file(tmp_path, "stream.arrow", rows)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows),
        tmp_path / "x.parquet",
        row_group_size=20_000,
        compression="none",
        use_dictionary=False,
    )
    del rows
    for name in (path.name, "x.parquet"):
        before = pyarrow.total_allocated_bytes()
        peaks = [pyarrow.total_allocated_bytes() - before for _ in iter_chunks(find_files(name, tmp_path)[0], "auto")]
        assert len(peaks) >= 10
        assert peaks[-1] <= max(peaks[:3]) + 4e6
