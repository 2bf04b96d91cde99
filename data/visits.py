"""In which order a cell gives its examples: a fresh order every epoch, the same on every platform."""

import hashlib
import json

import numpy as np


class Visits:
    """The endless sequence of one cell's examples, epoch by epoch; what was taken but not used can be given back."""

    def __init__(self, members: np.ndarray, key: int):
        self.members = members
        self.key = key
        # Several epochs of a small cell at a time; the order within each is the same either way.
        self.stride = max(1, 1024 // len(members))
        self.epoch = 0
        self.waiting = np.empty(0, np.int64)

    def take(self, count: int) -> np.ndarray:
        """The next `count` examples."""
        if count > len(self.waiting):
            self._refill(count)
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken

    def give_back(self, examples: np.ndarray) -> None:
        """These come next, before all others."""
        self.waiting = np.concatenate((examples, self.waiting))

    def _refill(self, count: int) -> None:
        pieces, missing = [self.waiting], count - len(self.waiting)
        while missing > 0:
            order = visit_order(self.key, len(self.members), first_epoch=self.epoch, epochs=self.stride)
            self.epoch += self.stride
            pieces.append(self.members[order])
            missing -= len(order)
        self.waiting = np.concatenate(pieces)


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
