"""The stream of rows: fresh order every epoch, nothing skipped, nothing systematic about what comes first."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.config import PackingConfig
from data.mixture import SHARE_BITS
from data.stream import key_for, random_bits, shuffled, stream_rows, visit_order

HALF = 1 << (SHARE_BITS - 1)


def take(lengths, members, *, blocks, parts=None, seed=0, **packing):
    parts = np.array(parts or [2 * HALF // len(members)] * len(members), np.int64)
    parts[0] += 2 * HALF - parts.sum()
    names = [("s", f"l{index}") for index in range(len(members))]
    config = PackingConfig(**{"row_length": 32, "block_examples": 16, **packing})
    stream = stream_rows(np.asarray(lengths), members, config, names=names, parts_C=parts, seed=seed)
    return [list(map(np.ndarray.tolist, block)) for block in itertools.islice(stream, blocks)]


def test_every_example_is_seen_before_any_is_seen_again():
    """Epochs run on through blocks: three blocks of 16 are two epochs of 24, whatever is packed where."""
    rows = take([4] * 24, [np.arange(24)], blocks=9)
    seen = [example for block in rows for row in block for example in row]
    for pair in range(1, 4):
        assert np.bincount(seen[: 48 * pair]).tolist() == [2 * pair] * 24


def test_a_small_cell_repeats_evenly_beside_a_large_one():
    members = [np.arange(3), np.arange(3, 100)]
    rows = take([4] * 100, members, blocks=4, parts=[HALF, HALF])
    counts = np.bincount([example for block in rows for row in block for example in row], minlength=100)
    assert sorted(counts[:3]) == [10, 11, 11]
    assert sorted(set(counts[3:])) == [0, 1]
    assert counts[3:].sum() == 32


def test_another_cell_does_not_change_which_examples_a_cell_gives():
    """Orders belong to (source, language), so adding a source later cannot reshuffle the rest."""
    members = [np.arange(100), np.arange(100, 200)]
    alone = take([4] * 200, members[:1], blocks=1)[0]
    beside = [row for block in take([4] * 200, members, blocks=2) for row in block]
    first_sixteen = {example for row in alone for example in row}
    assert first_sixteen == {example for row in beside for example in row if example < 100}


def test_long_examples_are_not_first():
    """Best fit opens rows for the longest examples first; unshuffled, training would see them all early."""
    lengths = [30] * 100 + [2] * 100
    members = [np.arange(100), np.arange(100, 200)]
    block = take(lengths, members, blocks=1, parts=[HALF, HALF], block_examples=200, packed=False)[0]
    places = np.array([place for place, row in enumerate(block) if row[0] < 100])
    assert 85 < places.mean() < 115


def test_packed_and_unpacked_draw_the_same_examples():
    lengths = np.arange(1, 31)
    packed, padded = (take(lengths, [np.arange(30)], blocks=3, packed=packed) for packed in (True, False))
    assert all(len(row) == 1 for block in padded for row in block)
    for ours, theirs in zip(packed, padded, strict=True):
        assert sorted(itertools.chain(*ours)) == sorted(itertools.chain(*theirs))


def test_seed_changes_the_stream_and_nothing_else_does():
    first = take([5] * 30, [np.arange(30)], blocks=3, seed=1)
    assert first == take([5] * 30, [np.arange(30)], blocks=3, seed=1)
    assert first != take([5] * 30, [np.arange(30)], blocks=3, seed=2)


@given(key=st.integers(0, 2**64 - 1), size=st.integers(1, 50), epochs=st.integers(1, 4))
def test_each_epoch_visits_everything_once_and_does_not_depend_on_where_reading_began(key, size, epochs):
    order = visit_order(key, size, first_epoch=0, epochs=epochs)
    assert (np.sort(order.reshape(epochs, size), axis=1) == np.arange(size)).all()
    last = visit_order(key, size, first_epoch=epochs - 1)
    assert order[-size:].tolist() == last.tolist()


def test_epochs_and_keys_have_orders_of_their_own():
    orders = [visit_order(key, 100, first_epoch=epoch).tolist() for key in (1, 2) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_random_bits_are_splitmix64():
    """Reference output for seed 1234567, so that no platform or NumPy version can move a plan."""
    assert random_bits(1234567, start=0, count=3).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]
    assert random_bits(1234567, start=2, count=1).tolist() == [9817491932198370423]


def test_shuffles_are_permutations_without_a_bias_of_place():
    places = np.array([shuffled(key_for(0, "rows", block), 10) for block in range(2000)])
    assert (np.sort(places, axis=1) == np.arange(10)).all()
    # 2,000 draws of a uniform 0..9: the mean is 4.5 within 5 standard errors of .064.
    assert np.abs(places.mean(axis=0) - 4.5).max() < 0.32


def test_keys_differ_by_purpose_and_seed():
    keys = [key_for(0, "rows", 1), key_for(1, "rows", 1), key_for(0, "rows", 11), key_for(0, "examples", 1)]
    assert len(set(keys)) == 4
