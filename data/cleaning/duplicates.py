"""Exact and near duplicates: a signature of fixed size for each example, and one search over all of them."""

import array
import collections
import functools
import hashlib
import unicodedata
from typing import Any, NamedTuple

import msgspec
import numpy as np

from data.cleaning.texts import fold, read_part
from data.cleaning.units import hash_character_ngrams, hash_ngrams, mix
from data.cleaning_config import CleaningConfig, ExactDuplicates, NearDuplicates
from data.schema import Conversation, DataError

EXACT_BYTES = 8
"""Of the hash of a text. Among a hundred million texts the odds that two share one by chance are 1 in 3,700."""
NEAR_BYTES = 4
"""Of one MinHash value."""
EMPTY = 0xFFFFFFFF
"""First MinHash value of a text too short to have one."""
MIN_FOUND = 0.9
"""Least chance that a pair just at the threshold is compared."""
BATCH = 16384
"""N-grams of a text hashed at once: memory stays at 8 MB with 128 permutations, however long the text."""


class Duplicates(NamedTuple):
    """What is to be left out, by index into the signatures, in their order."""

    dropped_D: np.ndarray
    """int64, ascending"""
    kept_D: np.ndarray
    """int64: the earlier example, itself kept, that each is a duplicate of."""
    is_near_D: np.ndarray
    """bool: near duplicate; False: exact."""

    def predicate(self, place: int) -> str:
        """The name of the predicate that drops the example at a place of these arrays."""
        return "near_duplicates" if self.is_near_D[place] else "exact_duplicates"


def signature_size(config: CleaningConfig) -> int:
    """Returns the bytes of every signature: 8 for exact duplicates, 4 for each permutation of near ones; 0 for none."""
    exact = 0 if config.exact_duplicates is None else EXACT_BYTES
    near = 0 if config.near_duplicates is None else NEAR_BYTES * config.near_duplicates.permutations
    return exact + near


def signature(config: CleaningConfig, conversation: Conversation) -> bytes:
    """Returns what `find_duplicates` needs to know of a conversation, `signature_size` bytes, the same everywhere.

    The hash of its text, then the MinHash of its folded text's character n-grams, little-endian; each only if its
    predicate is on. The MinHash of a text too short to have near duplicates is all ones. Raises DataError if
    datasketch is needed and not installed.
    """
    parts = []
    if config.exact_duplicates is not None:
        parts.append(_hash_exact(conversation, config.exact_duplicates))
    if config.near_duplicates is not None:
        parts.append(_sketch(conversation, config.near_duplicates))
    return b"".join(parts)


def find_duplicates(
    config: CleaningConfig, signatures_NS: np.ndarray, language_N: np.ndarray, source_N: np.ndarray
) -> Duplicates:
    """Returns which examples repeat an earlier one that is kept.

    `signatures_NS` are bytes (uint8) of `signature`, in the order of the sources; languages and sources any integers.
    Examples are taken in order, and each is compared with those kept before it, so every example that is left out has
    its like among those kept, and the first of its kind always stays. Near duplicates are sought among what exact ones
    leave. Time is N log N unless thousands of kept examples are nearly alike; memory besides the signatures is about
    100 bytes an example and 8 for each band (16 bands with the defaults).

    Raises DataError if the signatures are not of this configuration.
    """
    if signatures_NS.ndim != 2 or signatures_NS.shape[1] != signature_size(config) or signatures_NS.dtype != np.uint8:
        raise DataError(
            f"signatures of {signatures_NS.shape} {signatures_NS.dtype} do not fit data.cleaning, which makes "
            f"{signature_size(config)} bytes each; prepare the data again"
        )
    kept_by_N = np.full(len(signatures_NS), -1, np.int64)
    is_near_N = np.zeros(len(signatures_NS), bool)
    scopes = {"language": language_N, "source": source_N, "all": np.zeros(len(signatures_NS), np.int64)}
    near_at = 0
    if config.exact_duplicates is not None and len(signatures_NS):
        near_at = EXACT_BYTES
        hashes_N = np.ascontiguousarray(signatures_NS[:, :near_at]).view("<u8")[:, 0]
        first_N = _find_first(hashes_N, scopes[config.exact_duplicates.scope])
        is_later_N = first_N != np.arange(len(first_N))
        kept_by_N[is_later_N] = first_N[is_later_N]
    if config.near_duplicates is not None and len(signatures_NS):
        left_L = np.flatnonzero(kept_by_N < 0)
        groups_L = scopes[config.near_duplicates.scope][left_L]
        found_L = _find_near(signatures_NS, near_at, left_L, groups_L, config.near_duplicates)
        is_found_L = found_L >= 0
        kept_by_N[left_L[is_found_L]] = left_L[found_L[is_found_L]]
        is_near_N[left_L[is_found_L]] = True
        # What an exact duplicate repeats may itself be near an earlier one.
        is_moved_N = (kept_by_N >= 0) & (kept_by_N[kept_by_N] >= 0)
        kept_by_N[is_moved_N] = kept_by_N[kept_by_N[is_moved_N]]
    dropped_D = np.flatnonzero(kept_by_N >= 0)
    return Duplicates(dropped_D, kept_by_N[dropped_D], is_near_N[dropped_D])


def _hash_exact(conversation: Conversation, check: ExactDuplicates) -> bytes:
    if check.part == "conversation":
        turns = [msgspec.structs.replace(turn, content=turn.content.strip(), train=None) for turn in conversation.turns]
        text = msgspec.json.encode((turns, conversation.tools)).decode()
    else:
        text = read_part(conversation, check.part)
    return _hash_text(unicodedata.normalize("NFC", text))


def _hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=EXACT_BYTES).digest()


def _sketch(conversation: Conversation, check: NearDuplicates) -> bytes:
    text = fold(read_part(conversation, check.part))
    if len(text) < check.min_characters:
        return b"\xff" * (NEAR_BYTES * check.permutations)
    # The upper half of a hash is as good as the lower, and datasketch hashes to 32 bits.
    ngrams_G = (hash_character_ngrams(text, check.characters) >> np.uint64(32)).astype(np.uint32)
    sketch = _new_minhash(check.permutations, check.seed).copy()
    for start in range(0, len(ngrams_G), BATCH):
        sketch.update_batch(ngrams_G[start : start + BATCH].tolist())
    return sketch.hashvalues.astype("<u4").tobytes()


@functools.cache
def _new_minhash(permutations: int, seed: int) -> Any:
    """An empty sketch whose input is already hashed; copies share its permutations."""
    return _import_datasketch().MinHash(num_perm=permutations, seed=seed, hashfunc=int, scheme="affine32")


def choose_bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Returns how many bands of how many values: pairs that agree on a whole band are compared.

    As many values as leave a pair just at the threshold its chance (`MIN_FOUND`) to be compared; more alike ones have
    a better one. 0.8 and 128 give 16 bands of 8: 95% at 0.8, 99% at 0.85, 61% at 0.7, 6% at 0.5.
    """
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= MIN_FOUND:
            return bands, rows
    return permutations, 1


def _import_datasketch() -> Any:
    try:
        import datasketch
    except ModuleNotFoundError:
        raise DataError(
            "data.cleaning.near_duplicates needs the package datasketch; pip install 'polytune[clean]'"
        ) from None
    return datasketch


def _find_first(hashes_N: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """The index of the first example with the same hash and group, for each."""
    order_N = np.lexsort((hashes_N, groups_N))
    hashes_O, groups_O = hashes_N[order_N], groups_N[order_N]
    is_new_O = np.ones(len(order_N), bool)
    is_new_O[1:] = (hashes_O[1:] != hashes_O[:-1]) | (groups_O[1:] != groups_O[:-1])
    first_N = np.empty_like(order_N)
    first_N[order_N] = order_N[np.flatnonzero(is_new_O)[np.cumsum(is_new_O) - 1]]
    return first_N


def _find_near(
    signatures_NS: np.ndarray, near_at: int, left_L: np.ndarray, groups_L: np.ndarray, check: NearDuplicates
) -> np.ndarray:
    """For each example that is left the earlier, kept one among them that it is like, or -1."""
    found_L = np.full(len(left_L), -1, np.int64)
    near_NS = signatures_NS[:, near_at:]
    buckets_LB = _find_buckets(near_NS, left_L, groups_L, check)
    # Growing arrays, because a bucket of rows made from one template may hold thousands.
    kept_in: collections.defaultdict[int, array.array[int]] = collections.defaultdict(lambda: array.array("q"))
    needed = check.threshold * check.permutations
    # Only those that share a bucket with another are ever looked at.
    for example in np.flatnonzero((buckets_LB >= 0).any(axis=1)).tolist():
        buckets = [bucket for bucket in buckets_LB[example].tolist() if bucket >= 0]
        held = [kept_in[bucket] for bucket in buckets if bucket in kept_in]
        if held:
            near_K = np.unique(np.concatenate([np.array(each, np.int64) for each in held]))
            alike_A = near_K[_count_agreeing(near_NS[left_L[near_K]], near_NS[left_L[example]]) >= needed]
            if len(alike_A):
                found_L[example] = alike_A[0]
                continue
        for bucket in buckets:
            kept_in[bucket].append(example)
    return found_L


def _find_buckets(near_NS: np.ndarray, left_L: np.ndarray, groups_L: np.ndarray, check: NearDuplicates) -> np.ndarray:
    """For each example and band the number of its bucket, one number for those who share it; -1 where it is alone."""
    bands, rows = choose_bands(check.threshold, check.permutations)
    buckets_LB = np.full((len(left_L), bands), -1, np.int64)
    # The least of several permuted values is not the greatest number there is: that is the mark of a short text.
    long_I = np.flatnonzero(_read_values(near_NS[left_L, :NEAR_BYTES])[:, 0] != EMPTY)
    for band in range(bands):
        start = band * rows * NEAR_BYTES
        values_IR = _read_values(near_NS[left_L[long_I], start : start + rows * NEAR_BYTES])
        first_I = _find_first(_hash_rows(values_IR), groups_L[long_I])
        is_shared_I = np.bincount(first_I, minlength=len(first_I))[first_I] > 1
        buckets_LB[long_I[is_shared_I], band] = first_I[is_shared_I] * bands + band
    return buckets_LB


def _count_agreeing(others_KS: np.ndarray, mine_S: np.ndarray) -> np.ndarray:
    return np.count_nonzero(_read_values(others_KS) == _read_values(mine_S), axis=1)


def _read_values(bytes_NS: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bytes_NS).view("<u4")


def _hash_rows(values_NR: np.ndarray) -> np.ndarray:
    """One uint64 for each row of integers: that of its only n-gram."""
    rows = mix(values_NR.astype(np.uint64))
    return hash_ngrams(rows.T, values_NR.shape[1])[0]
