"""Shards: what is written comes back, in any order, and nothing half-written or damaged is taken for one."""

import errno
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import token_store
from data.cleaning.report import CleaningReport
from data.encoded import Encoded
from data.schema import DataError
from data.shards import COLUMNS, ShardFacts, digest_records, has_shard, read_shard, write_shard
from data.token_store import ShardStore, encode_record, id_bytes_for, records_path, split_tokens, table_path


def example(*ids, roles=None, weights=None):
    count = len(ids)
    return Encoded(
        np.array(ids, np.int32),
        np.array(roles or [4] * count, np.int8),
        np.array(weights or [1.0] * count, np.float32),
        np.zeros(count, np.int16),
    )


def put(store, key, examples, id_bytes=2):
    records = [encode_record(each, id_bytes) for each in examples]
    columns = {name: np.arange(len(examples), dtype=kind) for name, kind in COLUMNS.items()}
    facts = ShardFacts(
        key=key,
        source="s",
        examples=len(examples),
        tokens=sum(len(each.ids) for each in examples),
        id_bytes=id_bytes,
        largest_id=9,
        digest=digest_records(records),
        languages=("sw",),
        tasks=("",),
        files=("a.jsonl",),
        read=len(examples),
        cleaning=CleaningReport(max_listed=0),
    )
    write_shard(store, facts, records, columns, np.zeros((len(examples), 0), np.uint8))
    return facts


FIRST = [example(1, 2, 3), example(4, 5), example(6, 7, 8, 9)]
SECOND = [example(65535, 0), example(11, 12, 13, roles=[1, 3, 4], weights=[0.0, 0.25, 1.0])]


def test_a_record_holds_ids_roles_and_which_weight():
    tokens = split_tokens(encode_record(SECOND[1], 2), [9], 2)
    assert tokens.ids.tolist() == [11, 12, 13]
    assert tokens.roles.tolist() == [1, 3, 4]
    assert tokens.weight_codes.tolist() == [0, 2, 1]
    assert tokens.offsets.tolist() == [0, 3]


@pytest.mark.parametrize("vocab_size, id_bytes", [(65_536, 2), (65_537, 4), (262_144, 4)])
def test_ids_take_two_bytes_where_the_vocabulary_allows(vocab_size, id_bytes):
    assert id_bytes_for(vocab_size) == id_bytes
    largest = vocab_size - 1
    assert split_tokens(encode_record(example(largest), id_bytes), [id_bytes + 1], id_bytes).ids.tolist() == [largest]


def example_bytes():
    return encode_record(FIRST[2], 2)


def open_both(store):
    put(store, "aa", FIRST)
    put(store, "bb", SECOND)
    return ShardStore(store, ("aa", "bb"), (3, 2), 2)


def test_records_are_numbered_on_through_shards_and_read_in_any_order(tmp_path):
    tokens = open_both(tmp_path).read(np.array([4, 0, 2, 0, 3]))
    assert tokens.ids.tolist() == [11, 12, 13, 1, 2, 3, 6, 7, 8, 9, 1, 2, 3, 65535, 0]
    assert tokens.offsets.tolist() == [0, 3, 6, 10, 13, 15]


def test_nothing_asked_for_is_nothing(tmp_path):
    tokens = open_both(tmp_path).read(np.empty(0, np.int64))
    assert (tokens.ids.tolist(), tokens.offsets.tolist()) == ([], [0])


def test_a_store_crosses_to_a_process_as_paths(tmp_path):
    store = open_both(tmp_path)
    store.read(np.array([0]))
    assert pickle.loads(pickle.dumps(store)).read(np.array([1])).ids.tolist() == [4, 5]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_any_selection_equals_reading_one_by_one(chosen):
    store = ALL
    one_by_one = [store.read(np.array([record])).ids.tolist() for record in chosen]
    assert store.read(np.array(chosen, np.int64)).ids.tolist() == [token for ids in one_by_one for token in ids]


@pytest.fixture(autouse=True, scope="module")
def _all(tmp_path_factory):
    global ALL
    ALL = open_both(tmp_path_factory.mktemp("all"))


def test_tables_come_back(tmp_path):
    facts = put(tmp_path, "aa", FIRST)
    assert has_shard(tmp_path, "aa")
    table = read_shard(tmp_path, "aa")
    assert table.facts == facts
    for name, kind in COLUMNS.items():
        assert table.columns[name].dtype == kind
        assert table.columns[name].tolist() == [0, 1, 2]


def test_a_shard_whose_table_was_not_written_yet_is_none(tmp_path):
    """A kill between the two renames: the next start makes the shard again."""
    put(tmp_path, "aa", FIRST)
    table_path(tmp_path, "aa").unlink()
    assert not has_shard(tmp_path, "aa")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_table_is_an_error_that_names_it(tmp_path, keep):
    put(tmp_path, "aa", FIRST)
    path = table_path(tmp_path, "aa")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"aa\.npz is .*delete it and prepare again"):
        read_shard(tmp_path, "aa")


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "flipped"])
def test_damaged_records_are_an_error_that_names_the_shard(tmp_path, damage):
    """Never fewer examples, or those of another shard, taken for these."""
    store = open_both(tmp_path)
    path = records_path(tmp_path, "aa")
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "flipped":
        content = bytearray(path.read_bytes())
        content[content.index(example_bytes()) + 3] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(records_path(tmp_path, "bb").read_bytes())
    how = "No such file or directory" if damage == "gone" else r"delete .*aa\.npz and prepare again"
    with pytest.raises(DataError, match=rf"aa\.array_record cannot be read .*{how}"):
        store.read(np.array([0, 1, 2]))


def test_a_process_at_its_limit_of_open_files_is_told_so_and_no_shard_is_blamed(tmp_path, monkeypatch):
    store = open_both(tmp_path)

    def refuse(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"aa\.array_record: Too many open files; raise the limit .*ulimit -n"):
        store.read(np.array([0]))


def test_more_shards_than_may_be_open_are_read_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(token_store, "count_openable", lambda: 1)
    store = open_both(tmp_path)
    for _ in range(3):
        assert store.read(np.array([0, 3, 1])).ids.tolist() == [1, 2, 3, 65535, 0, 4, 5]


@pytest.mark.parametrize("limit, wanted", [(1024, 896), (64, 1), (1 << 20, token_store.MOST_OPEN)])
def test_open_shards_keep_to_the_process_s_limit(monkeypatch, limit, wanted):
    monkeypatch.setattr(token_store.resource, "getrlimit", lambda _: (limit, limit))
    assert token_store.count_openable() == wanted


@pytest.mark.parametrize("keep", [0, 1000, -1])
def test_records_cut_by_a_crash_are_found_before_training_not_in_it(tmp_path, keep):
    """A disk that was full or lost its power may keep a file's name and not its content."""
    put(tmp_path, "aa", FIRST)
    records = records_path(tmp_path, "aa")
    records.write_bytes(records.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"aa\.npz is damaged, or its records are missing or cut; delete it and"):
        read_shard(tmp_path, "aa")


def test_a_store_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write prepared data to .*set data.store to another folder"):
        put(tmp_path / "file", "aa", FIRST)


def test_no_scratch_file_is_left(tmp_path):
    put(tmp_path, "aa", FIRST)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["aa.array_record", "aa.npz"]
