"""Which rows a process loads, and what processes tell each other with a step."""

import jax
import numpy as np
import pytest
from toy import AXES, lay_out, make_examples, mesh_of, pack_pairs

from train.hosts import (
    Notes,
    Share,
    Told,
    is_first,
    order_rows,
    pick_share,
    read_notes,
    row_order,
    share_of_batch,
    spread_notes,
    tell_all,
    wait_for_all,
    write_notes,
)
from train.metrics import describe_batch

BATCH = lay_out(pack_pairs(make_examples(16, seed=5)))


def held(*rows):
    return {process: frozenset(part) for process, part in enumerate(rows)}


@pytest.mark.parametrize(
    ("rows", "shares"),
    [
        ([(0, 1), (2, 3)], [Share(0, 2, True), Share(1, 2, True)]),
        # Processes in another order than their rows.
        ([(2, 3), (0, 1)], [Share(1, 2, True), Share(0, 2, True)]),
        # A tensor axis over two processes: both need the same rows, one of them reports them.
        ([(0, 1, 2, 3), (0, 1, 2, 3)], [Share(0, 1, True), Share(0, 1, False)]),
        ([(0, 1), (0, 1), (2, 3)], [Share(0, 2, True), Share(0, 2, False), Share(1, 2, True)]),
        # The grid of a pod: a process's rows are not consecutive.
        ([(0, 2), (1, 3)], [Share(0, 2, True), Share(1, 2, True)]),
    ],
)  # fmt: skip
def test_each_row_of_a_batch_is_loaded_by_the_processes_that_hold_it(rows, shares):
    assert [pick_share(held(*rows), process, rows=4) for process in range(len(rows))] == shares


@pytest.mark.parametrize(
    ("places", "order"),
    [
        ([(0, 1), (2, 3)], ()),
        ([(2, 3), (0, 1)], ()),
        ([(0, 1, 2, 3), (0, 1, 2, 3)], ()),
        ([(0, 2), (1, 3)], (0, 2, 1, 3)),
        ([(1, 3), (0, 2)], (0, 2, 1, 3)),
        ([(0, 1, 6, 7), (2, 3, 4, 5)], (0, 1, 4, 5, 6, 7, 2, 3)),
        ([(0, 4), (0, 4), (1, 5), (1, 5), (2, 3), (2, 3)], (0, 2, 4, 5, 1, 3)),
    ],
)  # fmt: skip
def test_it_is_known_which_row_lies_where(places, order):
    """Each share is a run of rows; on the grid of a pod it lies at places that are none."""
    assert order_rows(held(*places)) == order
    whole = len(set().union(*places))
    for process, part in enumerate(places):
        share = pick_share(held(*places), process, rows=whole)
        loaded = range(share.index * len(part), (share.index + 1) * len(part))
        assert [(order or range(whole))[place] for place in sorted(part)] == list(loaded)


@pytest.mark.parametrize("rows", [[(0, 1, 2), (3,)], [(0, 1, 2), (1, 2, 3)], [(0, 1), (1, 2), (2, 3)]])
def test_processes_that_hold_unlike_or_overlapping_rows_are_refused(rows):
    """Whatever share they were given, some rows would be lost or counted twice."""
    with pytest.raises(ValueError, match=r"overlapping or unlike parts of the 4 rows .*process 0: .*make mesh.data"):
        pick_share(held(*rows), 0, rows=4)


@pytest.mark.parametrize("shape", [(1, 1), (4, 2), (2, 4)])
def test_a_process_alone_loads_the_whole_batch(shape):
    mesh = mesh_of(shape)
    assert share_of_batch(mesh, AXES.spec("batch", None), rows=8) == Share(0, 1, True)
    assert row_order(mesh, AXES.spec("batch", None), rows=8) == ()
    assert is_first()
    assert tell_all("x", lambda: {"step": 3}) == {"step": 3}
    wait_for_all("x")


@pytest.mark.parametrize("stopping", [False, True])
def test_notes_come_back_as_the_facts_of_the_whole_batch(stopping):
    facts = describe_batch(BATCH, first_row=40, num_languages=4, num_sources=3, flops=1e15)
    with jax.set_mesh(mesh_of((4, 2))):
        notes = write_notes(facts, Share(0, 1, True), Told(stops=stopping, saves=not stopping))
        spread = jax.jit(spread_notes)(notes)
        assert spread.counts.shape == (9,)
        assert spread.marks.sharding.is_fully_replicated
    whole, told = read_notes(spread, facts, Share(0, 1, True))
    np.testing.assert_array_equal(whole.tokens_R, facts.tokens_R)
    np.testing.assert_array_equal(whole.tokens_S, facts.tokens_S)
    assert whole.flops == pytest.approx(1e15)
    unlike = dict.fromkeys(("tokens_R", "tokens_S", "flops"))
    assert whole._replace(**unlike) == facts._replace(**unlike)
    assert told == Told(stops=stopping, saves=not stopping)


def test_the_facts_of_two_shares_are_those_of_the_batch():
    """Tokens by language are summed, the digest is that of all rows in order, and a process that only has the same
    rows for other devices counts nothing."""
    whole = describe_batch(BATCH, first_row=8, num_languages=4, num_sources=3, flops=6.0)
    halves = [type(BATCH)(*(np.split(field_BT, 2)[half] for field_BT in BATCH)) for half in (0, 1)]
    facts = [describe_batch(half, first_row=8, num_languages=4, num_sources=3, flops=3.0) for half in halves]
    told = ((1, 0), (0, 0))
    counts = np.sum([[*t, *half.tokens_R, *half.tokens_S] for t, half in zip(told, facts, strict=True)], axis=0)
    marks = np.array([[2, *facts[1].crcs], [0] * 4, [1, *facts[0].crcs], [0] * 4], np.uint32)
    for index in (0, 1):
        joined, told = read_notes(Notes(counts, np.float32(6), marks), facts[index], Share(index, 2, True))
        np.testing.assert_array_equal(joined.tokens_R, whole.tokens_R)
        np.testing.assert_array_equal(joined.tokens_S, whole.tokens_S)
        unlike = dict.fromkeys(("tokens_R", "tokens_S", "crcs"))
        assert joined._replace(**unlike) == whole._replace(**unlike)
        assert told == Told(stops=True)
    with jax.set_mesh(mesh_of((4, 2))):
        silent = write_notes(facts[0], Share(0, 2, False), Told())
        assert not np.asarray(silent.counts).any()
        assert not np.asarray(silent.marks).any() and not np.asarray(silent.flops).any()
