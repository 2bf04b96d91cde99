"""The digest of a batch, also of one that no process holds as a whole."""

import functools
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from data.batch import Batch


def digest_share(batch: Batch) -> tuple[int, int, int]:
    """crc32 of the tokens, the targets and the segments of some consecutive rows."""
    fields = (batch.tokens_BT, batch.targets_BT, batch.segments_BT)
    tokens, targets, segments = (zlib.crc32(np.ascontiguousarray(field_BT).tobytes()) for field_BT in fields)
    return tokens, targets, segments


def join_digests(shares: Sequence[tuple[int, int, int]], *, share_bytes: int) -> str:
    """crc32 of all tokens, then all targets, then all segments of the batch that equal shares make up: 8 hex digits.

    `share_bytes` is the size of one array of a share. The same however many shares the batch came in: the digest of
    rows (a b) is that of the shares (a) and (b).
    """
    return f"{join_crcs((crc for field in zip(*shares, strict=True) for crc in field), size_bytes=share_bytes):08x}"


def join_crcs(crcs: Iterable[int], *, size_bytes: int) -> int:
    """crc32 of pieces of equal size laid end to end, from the crc32 of each.

    A crc is linear over bits: that of (a b) is that of a, moved on by as many zero bytes as b has, xor that of b.
    """
    moved = _move_bits(size_bytes)
    whole = 0
    for crc in crcs:
        whole = functools.reduce(int.__xor__, (moved[bit] for bit in range(32) if whole >> bit & 1), crc)
    return whole


@functools.cache
def _move_bits(size_bytes: int) -> tuple[int, ...]:
    """What each of a crc's 32 bits becomes when so many zero bytes follow."""
    zeros = bytes(size_bytes)
    start = zlib.crc32(zeros)
    return tuple(zlib.crc32(zeros, 1 << bit) ^ start for bit in range(32))
