"""What each id of a byte-level vocabulary spells: it tells where ids stand at a fraction of what the pipeline asks."""

import functools
from typing import NamedTuple

import numpy as np
import tokenizers

PROBE = "Habari  yako?\n\nपानी ok"
"""Where this is not spelled by its ids, the pipeline adds or takes something from every text."""
NOTHING = b"\xff"
"""Stands for ids without a spelling: no text holds that byte."""
TRIMMING = b'"trim_offsets":true'
"""In the state of a post-processor whose offsets leave out space at the ends of tokens."""


class Spelling(NamedTuple):
    """The bytes of each id."""

    pieces: tuple[bytes, ...]
    sizes_V: np.ndarray
    """int64: bytes of each."""
    trimmed_V: np.ndarray
    """int64: those at its end that the offsets of the pipeline give to the next token."""


def read_spelling(pipeline: tokenizers.Tokenizer) -> Spelling | None:
    """Returns the spelling of a byte-level pipeline; None for one of another kind, or that does not keep texts."""
    if b'"ByteLevel"' not in (b"" if pipeline.decoder is None else pipeline.decoder.__getstate__()):
        return None
    byte_of = byte_of_letter()
    names = pipeline.get_vocab(with_added_tokens=True)
    pieces = [NOTHING] * (1 + max(names.values()))
    spaces = [0] * len(pieces)
    for name, token in names.items():
        if name and all(character in byte_of for character in name):
            pieces[token] = bytes(byte_of[character] for character in name)
    for token, added in pipeline.get_added_tokens_decoder().items():
        pieces[token] = added.content.encode() or NOTHING
    if pipeline.post_processor is not None and TRIMMING in pipeline.post_processor.__getstate__():
        spaces = [len(piece) - len(piece.rstrip(b" ")) if piece.strip(b" ") else 0 for piece in pieces]
    spelling = Spelling(tuple(pieces), np.array(list(map(len, pieces)), np.int64), np.array(spaces, np.int64))
    ids_T = np.array(pipeline.encode(PROBE, add_special_tokens=False).ids, np.int32)
    return None if locate_ids(spelling, ids_T, PROBE) is None else spelling


def locate_ids(spelling: Spelling, ids_T: np.ndarray, text: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns from which character to which each id reaches, int64; a space that is trimmed goes to the id after it.
    None where the ids do not spell the text, byte for byte, so that the pipeline has to say.

        text  a é b, ids of "a" + first byte of "é", its second byte, "b"  ->  starts 0 1 2, ends 2 2 3
    """
    content = text.encode()
    pieces = spelling.pieces
    if b"".join(map(pieces.__getitem__, ids_T.tolist())) != content:
        return None
    ends_T = np.cumsum(spelling.sizes_V[ids_T]) - spelling.trimmed_V[ids_T]
    starts_T = np.zeros_like(ends_T)
    starts_T[1:] = ends_T[:-1]
    if len(content) == len(text):
        return starts_T, ends_T
    codes = np.frombuffer(content, np.uint8)
    # How many characters have begun with each byte: all but those of the form 10xxxxxx begin one.
    begun = np.cumsum((codes & 0xC0) != 0x80)
    return begun[starts_T] - 1, begun[ends_T - 1]


@functools.cache
def byte_of_letter() -> dict[str, int]:
    """Returns the byte that each letter of a byte-level vocabulary stands for: printable Latin-1 itself, the rest from
    U+0100.

    Source: the alphabet of GPT-2's vocabulary, as `tokenizers.pre_tokenizers.ByteLevel.alphabet()` lists it.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}
