"""Words and characters of a text as 64-bit hashes, and n-grams of them: the same in every process and script."""

from typing import NamedTuple

import numpy as np

from data.cleaning.characters import MARK, SCRIPTS, SEPARATOR, SINGLE, WORD, read_codes, script_table, unit_table

# Odd constants of splitmix64 (Steele, Lea and Flood 2014), and two more odd numbers as bases of polynomials.
MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
CHARACTER_BASE = np.uint64(0x9E3779B97F4A7C15)
UNIT_BASE = np.uint64(0xD1342543DE82EF95)


class Units(NamedTuple):
    """A text as its units: words where the script has spaces, else characters with their marks."""

    hashes_U: np.ndarray
    """uint64"""
    is_spaced: bool
    """Whether at most half of the units are single characters of scripts without spaces."""


def read_units(text: str) -> Units:
    """Returns the units of a text; punctuation and space are of none. Fold the text first.

    `今年はabc 12` has five: 今 年 は abc 12. A vowel sign stays with its letter,
    inside a word too (`हिन्दी` is one unit), where `\\w` of Python's `re` would break it.
    """
    codes_C = read_codes(text)
    if not len(codes_C):
        return Units(np.zeros(0, np.uint64), True)
    inside_C, starts_C = _split(codes_C)
    starts_U = np.flatnonzero(starts_C[inside_C])
    if not len(starts_U):
        return Units(np.zeros(0, np.uint64), True)
    letters_I = mix(codes_C[inside_C].astype(np.uint64))
    places_I = np.arange(len(letters_I)) - np.repeat(starts_U, np.diff(np.append(starts_U, len(letters_I))))
    powers = _powers(CHARACTER_BASE, int(places_I.max()) + 1)
    hashes_U = mix(np.add.reduceat(letters_I * powers[places_I], starts_U))
    singles = int(np.count_nonzero(unit_table()[codes_C] == SINGLE))
    return Units(hashes_U, 2 * singles <= len(starts_U))


def count_unit_scripts(text: str) -> dict[str, int]:
    """Returns how many words (characters, in scripts without spaces) begin with a letter of each script.

    So `UX的全名是User Experience` is Hani 4, Latn 3, where letters alone would make it a Latin text.
    """
    codes_C = read_codes(text)
    _, starts_C = _split(codes_C)
    counts = np.bincount(script_table()[codes_C[starts_C]], minlength=len(SCRIPTS))
    return {SCRIPTS[number]: int(counts[number]) for number in np.flatnonzero(counts) if number}


def hash_ngrams(hashes_U: np.ndarray, length: int) -> np.ndarray:
    """Returns the hash of each run of `length` units (or characters), uint64, in order; none if there are fewer."""
    count = len(hashes_U) - length + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    powers = _powers(UNIT_BASE, length)
    sums_G = np.zeros((count, *hashes_U.shape[1:]), np.uint64)
    for place in range(length):
        sums_G += hashes_U[place : place + count] * powers[place]
    return mix(sums_G)


def hash_character_ngrams(text: str, length: int) -> np.ndarray:
    """Returns the distinct hashes of all runs of `length` characters, uint64, sorted; a shorter text is one run."""
    codes_C = read_codes(text)
    return np.unique(hash_ngrams(mix(codes_C.astype(np.uint64)), min(length, max(len(codes_C), 1))))


def mix(values: np.ndarray) -> np.ndarray:
    """Returns uint64 scattered over all 64 bits, one to one; 0 does not stay 0."""
    values = values + CHARACTER_BASE
    values = (values ^ (values >> np.uint64(30))) * MIX[0]
    values = (values ^ (values >> np.uint64(27))) * MIX[1]
    return values ^ (values >> np.uint64(31))


def _split(codes_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which characters are inside units, and which of them begin one."""
    if not len(codes_C):
        return np.zeros(0, bool), np.zeros(0, bool)
    kinds_C = unit_table()[codes_C]
    # A mark is what the last character before it that is none is; before the first letter there is none.
    bases_C = kinds_C[np.maximum.accumulate(np.where(kinds_C == MARK, 0, np.arange(len(codes_C))))]
    bases_C[bases_C == MARK] = SEPARATOR
    before_C = np.concatenate(([SEPARATOR], bases_C[:-1]))
    starts_C = (kinds_C == SINGLE) | ((bases_C == WORD) & (before_C != WORD))
    return bases_C != SEPARATOR, starts_C


def _powers(base: np.uint64, count: int) -> np.ndarray:
    """base ** 0, 1, ... modulo 2 ** 64."""
    return np.concatenate((np.ones(1, np.uint64), np.cumprod(np.full(count - 1, base, np.uint64), dtype=np.uint64)))
