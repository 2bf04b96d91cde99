"""The endless stream of rows a mixture defines: quotas, visits, packing and shuffling, block by block."""

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence

import numpy as np

from data.config import PackingConfig
from data.mixture import quotas_through
from data.packing import pack_best_fit, pack_one_each


def stream_rows(
    lengths_N: np.ndarray,
    members: Sequence[np.ndarray],
    packing: PackingConfig,
    *,
    names: Sequence[tuple[str, str]],
    parts_C: np.ndarray,
    seed: int,
) -> Iterator[list[np.ndarray]]:
    """Blocks of rows without end, each row the ids of its examples, the same for equal arguments.

    `members` holds the examples of each cell and `parts_C` the cells' shares as `mixture.draw_shares` gives
    them; `names` make each cell's order its own, whatever other cells there are. Every block holds
    `packing.block_examples` examples, so quotas are met exactly at its end and only roughly inside it.
    """
    pack = pack_best_fit if packing.packed else pack_one_each
    draws = [_draw(cell, key_for(seed, "visits", *name)) for cell, name in zip(members, names, strict=True)]
    for draw in draws:
        next(draw)
    drawn_C = np.zeros(len(members), np.int64)
    block = 0
    while True:
        quota_C = quotas_through(parts_C, drawn_C, (block + 1) * packing.block_examples)
        counts = (quota_C - drawn_C).tolist()
        examples = np.concatenate([draw.send(count) for draw, count in zip(draws, counts, strict=True)])
        # Mixed before packing, so that equally long examples meet in no order of cells.
        examples = examples[shuffled(key_for(seed, "examples", block), len(examples))]
        bins = pack(lengths_N[examples], packing.row_length)
        # Best fit opens bins for the longest first; a run cut inside a block must not end on the short ones.
        order = shuffled(key_for(seed, "rows", block), len(bins)).tolist()
        yield [examples[bins[index]] for index in order]
        drawn_C = quota_C
        block += 1


def visit_order(key: int, size: int, *, first_epoch: int, epochs: int = 1) -> np.ndarray:
    """Indices 0..size-1 in a fresh order for each epoch, epochs end to end; pure in (key, epoch)."""
    bits = random_bits(key, start=first_epoch * size, count=epochs * size)
    return np.argsort(bits.reshape(epochs, size), axis=1, kind="stable").reshape(-1)


def random_bits(key: int, *, start: int, count: int) -> np.ndarray:
    """`count` random uint64, element i a pure function of (key, start + i), the same on every platform.

    NumPy may change what its generators' methods draw between versions, and a plan must not.
    Source: SplitMix64, Steele, Lea and Flood, OOPSLA 2014.
    """
    counter = np.arange(start, start + count, dtype=np.uint64)
    z = np.uint64(key & (2**64 - 1)) + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(key: int, size: int) -> np.ndarray:
    """Indices 0..size-1 in the key's order."""
    return np.argsort(random_bits(key, start=0, count=size), kind="stable")


def key_for(seed: int, *purpose: str | int) -> int:
    """A 64-bit key for one purpose, unrelated to every other."""
    text = json.dumps([seed, *purpose], ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _draw(members: np.ndarray, key: int) -> Generator[np.ndarray, int, None]:
    """A coroutine: sent a count, gives that many next members, each epoch in a fresh order."""
    size = len(members)
    # Several epochs of a small cell at a time; the order within each is the same either way.
    stride = max(1, 1024 // size)
    waiting, epoch, count = np.empty(0, np.int64), 0, 0
    while True:
        pieces, missing = [waiting[:count]], count - len(waiting)
        waiting = waiting[count:]
        while missing > 0:
            fresh = members[visit_order(key, size, first_epoch=epoch, epochs=stride)]
            epoch += stride
            pieces.append(fresh[:missing])
            waiting, missing = fresh[missing:], missing - len(fresh)
        count = yield np.concatenate(pieces)
