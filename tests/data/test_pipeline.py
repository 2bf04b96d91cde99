"""Batches: the shift, the masks and the ids by literal tables; order by index, whatever loads them."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_dataset import make_dataset, store_dataset

from data.batch import Batch, Role
from data.pipeline import BatchSource, make_batch, make_batches, row_arrays
from data.plan import Plan, write_plan
from data.schema import DataError

H, U, A = int(Role.HEADER), int(Role.USER), int(Role.ASSISTANT)


def make_plan(rows, row_length, batch_rows=1):
    return Plan(
        row_offsets=np.cumsum([0, *map(len, rows)]),
        row_examples=np.concatenate([np.array(row, np.int32) for row in rows]),
        row_length=row_length,
        hash="h",
        summary={
            "rows": len(rows),
            "row_length": row_length,
            "batch_rows": batch_rows,
            "steps": 1,
            "hash": "h",
        },
    )


TWO = make_dataset(
    [
        ([1, 5, 6, 7], [H, U, A, A], [0, 0, 1, 1], 2, 3),
        ([1, 8, 9], [H, U, A], [0, 0, 0.5], 1, 1),
    ]
)

# Many examples whose token ids say where they stand: 100 * example + position.
NUMBERED = make_dataset(
    [
        (
            [100 * n + k for k in range(n % 5 + 2)],
            [H] + [A] * (n % 5 + 1),
            [0] + [1] * (n % 5 + 1),
            1 + n % 2,
            1,
        )
        for n in range(1, 50)
    ]
)
ROWS = [[n % 49, (7 * n) % 49] for n in range(48)]
PLAN = make_plan(ROWS, row_length=14, batch_rows=4)


def batches_of(**arguments):
    return list(make_batches((NUMBERED, PLAN), **{"start_row": 0, "batch_rows": 4, **arguments}))


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for name, left, right in zip(Batch._fields, one, other, strict=True):
            np.testing.assert_array_equal(left, right, err_msg=name)


def test_the_table_of_the_batch_contract():
    """The worked example of `Batch`, with every array written out."""
    batch = make_batch(TWO, make_plan([[0, 1]], 6), [0])
    expected = {
        "tokens_BT": [1, 5, 6, 1, 8, 0],
        "targets_BT": [5, 6, 7, 8, 9, 0],
        "loss_weight_BT": [0, 1, 1, 0, 0.5, 0],
        "segments_BT": [1, 1, 1, 2, 2, 0],
        "positions_BT": [0, 1, 2, 0, 1, 0],
        "language_BT": [2, 2, 2, 1, 1, 0],
        "role_BT": [U, A, A, U, A, 0],
        "source_BT": [3, 3, 3, 1, 1, 0],
    }
    assert {name: array[0].tolist() for name, array in batch._asdict().items()} == expected


def test_the_first_token_of_a_segment_is_never_a_target_of_the_one_before():
    """Shifting a packed row as a whole trains the end of each example to start the next."""
    for order in ([0, 1], [1, 0]):
        batch = row_arrays(TWO, [order], 8)
        first = TWO.read([order[0]]).ids
        boundary = len(first) - 2
        assert batch.segments_BT[0, boundary : boundary + 2].tolist() == [1, 2]
        assert batch.targets_BT[0, boundary] == first[-1]
        assert 1 not in batch.targets_BT[0]


def test_windows_may_count_places_of_a_row_for_positions_rise_by_one_in_a_segment():
    """Attention kernels skip blocks, and the TPU's masks whole windows, by places in the row."""
    for batch in batches_of():
        same = np.diff(batch.segments_BT, axis=1) == 0
        real = batch.segments_BT[:, 1:] > 0
        assert (np.diff(batch.positions_BT, axis=1)[same & real] == 1).all()
        assert (batch.positions_BT[:, 1:][~same] == 0).all() and (batch.positions_BT[:, 0] == 0).all()
        # Padding is last, and segments rise: what tells blocks without a common segment apart.
        order = np.where(batch.segments_BT == 0, np.iinfo(np.int32).max, batch.segments_BT)
        assert (np.diff(order.astype(np.int64), axis=1) >= 0).all()


def test_role_and_weight_speak_of_the_same_token():
    batch = row_arrays(TWO, [[0, 1]], 8)
    assert (batch.role_BT[batch.loss_weight_BT > 0] == A).all()
    assert (batch.loss_weight_BT[batch.role_BT == A] > 0).all()


def test_padding_is_the_pad_id_and_weighs_nothing():
    """A peer masks by token value; here padding is a segment of its own whatever the pad id is."""
    dataset = make_dataset([([1, 9, 2], [H, A, A], [0, 1, 1], 1, 1)], pad_id=9)
    batch = row_arrays(dataset, [[0], []], 4)
    assert batch.tokens_BT.tolist() == [[1, 9, 9, 9], [9, 9, 9, 9]]
    assert batch.targets_BT.tolist() == [[9, 2, 9, 9], [9, 9, 9, 9]]
    assert batch.loss_weight_BT.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert batch.segments_BT.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    for name in ("language_BT", "role_BT", "source_BT", "positions_BT"):
        assert not getattr(batch, name)[batch.segments_BT == 0].any()


def test_a_row_without_examples_is_padding_and_shifts_no_other_row():
    """Whole batches of a run in epochs end in such rows."""
    alone = make_batch(TWO, make_plan([[0], [1]], row_length=6), range(2))
    batch = make_batch(TWO, make_plan([[], [0], [], [1], []], row_length=6), range(5))
    for name, array, expected in zip(Batch._fields, batch, alone, strict=True):
        np.testing.assert_array_equal(array[[1, 3]], expected, err_msg=name)
    assert not batch.segments_BT[[0, 2, 4]].any()
    assert not batch.loss_weight_BT[[0, 2, 4]].any()
    empty = make_batch(TWO, make_plan([[0], [], []], row_length=6), range(1, 3))
    assert [array.shape for array in empty] == [(2, 6)] * len(empty)
    assert not any(array.any() for array in empty)


def test_dtypes_of_the_contract():
    dtypes = {name: array.dtype.name for name, array in row_arrays(TWO, [[0]], 8)._asdict().items()}
    assert dtypes.pop("loss_weight_BT") == "float32"
    assert set(dtypes.values()) == {"int32"}


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_unpacking_gives_back_the_examples(data):
    """Pack, then read each segment back: ids, weights, roles and tags are those that went in, none twice."""
    rows = data.draw(st.lists(st.lists(st.integers(0, 48), max_size=4), min_size=1, max_size=6))
    row_length = max([1, *(int(NUMBERED.lengths[row].sum()) for row in rows if row)])
    batch = row_arrays(NUMBERED, rows, row_length)
    for b, row in enumerate(rows):
        assert batch.segments_BT[b].max(initial=0) == len(row)
        for segment, example in enumerate(row, start=1):
            inside = batch.segments_BT[b] == segment
            tokens = NUMBERED.read([example])
            ids = tokens.ids.tolist()
            assert np.diff(np.flatnonzero(inside)).tolist() == [1] * (len(ids) - 2)
            assert batch.tokens_BT[b][inside].tolist() == ids[:-1]
            assert batch.targets_BT[b][inside].tolist() == ids[1:]
            assert batch.loss_weight_BT[b][inside].tolist() == tokens.weight_codes[1:].tolist()
            assert batch.role_BT[b][inside].tolist() == tokens.roles[1:].tolist()
            assert batch.positions_BT[b][inside].tolist() == list(range(len(ids) - 1))
            assert set(batch.language_BT[b][inside]) == {NUMBERED.language[example]}
            assert set(batch.source_BT[b][inside]) == {NUMBERED.source[example]}


def test_a_row_that_does_not_fit_is_an_error_not_a_spill_into_the_next():
    with pytest.raises(DataError, match="fill 5 positions of 4"):
        row_arrays(TWO, [[0, 1], [0]], 4)


def test_batches_are_the_rows_in_order():
    batches = batches_of()
    assert len(batches) == 12
    assert_same(batches, [make_batch(NUMBERED, PLAN, range(4 * k, 4 * k + 4)) for k in range(12)])


@pytest.mark.parametrize("start_row", [0, 4, 20, 44, 48])
def test_resuming_is_the_rest_of_the_same_batches(start_row):
    """On a fresh iterator: peers restored a position in a loader that had already moved on."""
    assert_same(batches_of(start_row=start_row), batches_of()[start_row // 4 :])


@pytest.mark.parametrize("start_row", [0, 1000])
def test_resuming_reads_no_row_that_was_served(start_row, monkeypatch):
    reads = []

    def record(self, index):
        reads.append(self.first_row + index * self.stride)
        return make_batch(self.dataset, self.plan, range(4))

    plan = make_plan(ROWS * 50, 14, batch_rows=4)
    monkeypatch.setattr(BatchSource, "__getitem__", record)
    next(make_batches((NUMBERED, plan), start_row=start_row, batch_rows=4, prefetch=1))
    assert min(reads) == start_row
    assert len(reads) <= 3


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_shares_laid_end_to_end_are_the_global_batch(hosts):
    shares = [batches_of(start_row=8, host_index=host, host_count=hosts) for host in range(hosts)]
    joined = [Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]
    assert_same(joined, batches_of(start_row=8))


@pytest.mark.parametrize("prefetch", [1, 2, 50])
def test_prefetch_changes_nothing(prefetch):
    assert_same(batches_of(prefetch=prefetch), batches_of())


def test_loader_processes_change_nothing(tmp_path):
    """From disk and from a later row; a peer gave fewer batches with more than one worker."""
    store_dataset(NUMBERED, tmp_path / "dataset", tmp_path / "store")
    write_plan(PLAN, tmp_path)
    loaded = list(make_batches(tmp_path, start_row=28, batch_rows=4, workers=2))
    assert_same(loaded, batches_of(start_row=28))
    assert all(type(array) is np.ndarray and array.flags.owndata for batch in loaded for array in batch)


def test_a_failure_while_loading_is_raised_to_whoever_asks():
    """A peer's hook logs it and returns None, and the job ends as a success."""
    broken = make_plan([[0], [1], [48], [2]], row_length=4)
    batches = make_batches((NUMBERED, broken), start_row=0, batch_rows=1)
    assert next(batches).tokens_BT.shape == (1, 4)
    with pytest.raises(DataError, match="fill 5 positions of 4"):
        list(batches)


def test_one_loader_process_gives_the_same_batches_and_raises_where_it_fails():
    rows = [[0], [1], [2], [48]]
    batches = make_batches((NUMBERED, make_plan(rows, row_length=4)), start_row=0, batch_rows=1, workers=1)
    assert_same(list(itertools.islice(batches, 3)), [row_arrays(NUMBERED, [row], 4) for row in rows[:3]])
    with pytest.raises(DataError, match="fill 5 positions of 4"):
        next(batches)


def test_leaving_early_stops_the_loader():
    batches = make_batches((NUMBERED, PLAN), start_row=0, batch_rows=4)
    assert len(list(itertools.islice(batches, 2))) == 2
    batches.close()
    assert next(batches, None) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"start_row": 49}, "start_row 49 is outside the plan's 48 rows"),
        ({"start_row": -4}, "start_row -4 is outside"),
        ({"start_row": 2}, r"46 rows are left from row 2 on, .*2 of them would never be served.*\(4\)"),
        ({"batch_rows": 5}, "3 of them would never be served"),
        ({"host_count": 3}, "use a multiple of 3"),
        ({"host_count": 2, "host_index": 2}, "host 2 of 2"),
        ({"batch_rows": 0}, "a batch of 0 rows"),
    ],
)
def test_rows_that_do_not_divide_are_refused_at_once(arguments, message):
    """Not when the first batch is asked for: a run should fail before it compiles."""
    with pytest.raises(DataError, match=message):
        make_batches((NUMBERED, PLAN), **{"start_row": 0, "batch_rows": 4, **arguments})


def test_rows_outside_the_plan_are_an_error():
    with pytest.raises(DataError, match="the plan has rows 0 to 47"):
        make_batch(NUMBERED, PLAN, [47, 48])
    with pytest.raises(DataError, match="the plan has rows 0 to 47"):
        make_batch(NUMBERED, PLAN, [-1])
