"""The stream of rows: fresh order every epoch, nothing skipped, nothing systematic about what comes first."""

import itertools
import math
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import PackingConfig
from data.mixture import Cell, Mixed
from data.stages import Stage
from data.stream import Supply, block_size, stream_rows
from data.visits import Visits, key_for, random_bits, shuffled, visit_order

HALF = 0.5


def take(lengths, members, *, blocks, shares=None, seed=0, **packing):
    shares = np.array(shares or [1 / len(members)] * len(members))
    cells = [Cell("s", f"l{index}", len(own), 10 * len(own), len(own)) for index, own in enumerate(members)]
    stage = Stage(0, None, Mixed(shares, np.arange(len(members))), cells, "examples")
    cell_N = np.repeat(np.arange(len(members)), [len(own) for own in members])
    assert np.concatenate(members).tolist() == list(range(len(cell_N)))
    supply = Supply(np.asarray(lengths)[: len(cell_N)], cell_N, [(cell.source, cell.language) for cell in cells])
    config = PackingConfig(**{"row_length": 32, "block_examples": 16, **packing})
    stream = stream_rows(supply, [stage], config, seed=seed)
    return [
        [row.tolist() for row in np.split(block.examples, np.cumsum(block.counts)[:-1])] if len(block.counts) else []
        for block in itertools.islice(stream, blocks)
    ]


def test_every_example_is_seen_before_any_is_seen_again():
    """Epochs run on through blocks: three blocks of 16 are two epochs of 24, whatever is packed where."""
    rows = take([4] * 24, [np.arange(24)], blocks=9)
    seen = [example for block in rows for row in block for example in row]
    for pair in range(1, 4):
        assert np.bincount(seen[: 48 * pair]).tolist() == [2 * pair] * 24


def test_a_small_cell_repeats_evenly_beside_a_large_one():
    members = [np.arange(3), np.arange(3, 100)]
    rows = take([4] * 100, members, blocks=4, shares=[HALF, HALF])
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
    block = take(lengths, members, blocks=1, shares=[HALF, HALF], block_examples=200, packed=False)[0]
    places = np.array([place for place, row in enumerate(block) if row[0] < 100])
    assert 85 < places.mean() < 115


def test_packed_and_unpacked_draw_the_same_examples():
    """All but those of the one row of a block that is taken apart and comes with the next."""
    lengths = np.arange(1, 31)
    packed, padded = (take(lengths, [np.arange(30)], blocks=6, packed=packed) for packed in (True, False))
    assert all(len(row) == 1 for block in padded for row in block)
    ours, theirs, waited = Counter(), Counter(), []
    for packed_block, padded_block in zip(packed, padded, strict=True):
        ours.update(itertools.chain(*packed_block))
        theirs.update(itertools.chain(*padded_block))
        assert not ours - theirs
        waiting = theirs - ours
        assert sum(int(lengths[example]) * count for example, count in waiting.items()) < 32
        waited.append(waiting)
    assert any(waited)


def test_the_emptiest_row_of_a_block_is_filled_up_in_the_next():
    """Blocks of 16 x 3 positions are one and a half rows of 32; packed each by itself a third would be padding."""
    rows = [row for block in take([3] * 999, [np.arange(999)], blocks=40) for row in block]
    assert Counter(len(row) for row in rows)[10] == len(rows)
    seen = [example for row in rows for example in row]
    assert len(seen) == len(set(seen))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 32), min_size=40, max_size=90), st.integers(0, 9))
def test_nothing_waits_for_more_than_four_blocks(lengths, seed):
    """Lengths that share no row with others would be in the emptiest row of every block, and never come."""
    members = [np.arange(len(lengths))]
    packed, drawn = (take(lengths, members, blocks=20, seed=seed, packed=flag) for flag in (True, False))
    came, due = (
        [
            [b for b, rows in enumerate(blocks) for row in rows for one in row if one == example]
            for example in members[0]
        ]
        for blocks in (packed, drawn)
    )
    for came_in, due_in in zip(came, due, strict=True):
        assert all(meant <= block <= meant + 4 for block, meant in zip(came_in, due_in, strict=False))
        assert all(meant >= 16 for meant in due_in[len(came_in) :])


def test_what_is_given_back_comes_before_anything_new():
    visits = Visits(np.arange(10, 20), key=3)
    whole = Visits(np.arange(10, 20), key=3).take(20).tolist()
    first = visits.take(6).tolist()
    assert first == whole[:6]
    visits.give_back(np.array(first[4:]))
    assert visits.take(14).tolist() == whole[4:18]


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


def test_a_part_of_a_source_is_not_its_first_rows():
    """A peer's fraction of a data set is the rows that come first in the file, in whatever order that is."""
    blocks = take([4] * 1000, [np.arange(1000)], blocks=16)
    half = np.array([example for block in blocks for row in block for example in row])
    assert len(half) == 256
    tenths = np.bincount(half // 100, minlength=10)
    # 25.6 each; the standard deviation of drawing without return is 4.1.
    assert tenths.min() > 25.6 - 5 * 4.1
    assert tenths.max() < 25.6 + 5 * 4.1


def test_a_block_is_large_enough_for_full_rows_and_no_larger():
    """1,024 examples, or what fills 32 rows; the recipe's own number wins."""
    lengths = np.array([10, 30])
    assert block_size(lengths, PackingConfig(row_length=512)) == 1024
    assert block_size(lengths, PackingConfig(row_length=2048)) == math.ceil(32 * 2048 / 20)
    assert block_size(lengths, PackingConfig(row_length=2048, packed=False)) == 1024
    assert block_size(lengths, PackingConfig(row_length=2048, block_examples=77)) == 77
