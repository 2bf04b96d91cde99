"""Which ids of a tokenizer are unknown tokens, and which spell no character by themselves."""

import json
from typing import Any, Literal, NamedTuple

import numpy as np
import sentencepiece
import tokenizers

from data.hub_backend import build_backend
from data.hub_spelling import byte_of_letter
from data.hub_tokenizer import HubTokenizer
from data.schema import DataError
from data.sentencepiece_tokenizer import SentencePieceTokenizer
from data.tokenizer import Tokenizer

ORDINARY, UNKNOWN, BYTES = 0, 1, 2
"""Kinds of ids: spells text; stands for what the vocabulary lacks; spells a byte, or parts of characters."""

ByteKind = Literal["pieces", "partial", "none"]
"""What spelling in bytes looks like: `<0xNN>` pieces; tokens of a byte-level vocabulary that are no whole characters
(no valid UTF-8) by themselves; none, so that what the vocabulary lacks becomes unknown."""


class TokenKinds(NamedTuple):
    """The kind of each id of a vocabulary."""

    kind_V: np.ndarray
    """uint8: `ORDINARY`, `UNKNOWN` or `BYTES` by id."""
    has_unknown: bool
    byte_kind: ByteKind


def find_kinds(tokenizer: Tokenizer) -> TokenKinds:
    """Returns the kinds of a tokenizer's ids. Raises DataError for a tokenizer of a kind that is not known here."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return _find_pieces(tokenizer)
    if isinstance(tokenizer, HubTokenizer):
        return _find_hub(tokenizer)
    raise DataError(f"cannot tell unknown and byte tokens of a {type(tokenizer).__name__}; give a tokenizer from disk")


def _find_pieces(tokenizer: SentencePieceTokenizer) -> TokenKinds:
    processor = sentencepiece.SentencePieceProcessor()
    processor.load_from_serialized_proto(tokenizer.model)
    kind_V = np.full(tokenizer.vocab_size, ORDINARY, np.uint8)
    for token in range(processor.get_piece_size()):
        if processor.is_byte(token):
            kind_V[token] = BYTES
    has_bytes = bool((kind_V == BYTES).any())
    kind_V[processor.unk_id()] = UNKNOWN
    return TokenKinds(kind_V, True, "pieces" if has_bytes else "none")


def _find_hub(tokenizer: HubTokenizer) -> TokenKinds:
    backend = build_backend(tokenizer.files, model_type=tokenizer.model_type, config_class=tokenizer.config_class)
    pipeline = backend.pipeline
    kind_V = np.full(tokenizer.vocab_size, ORDINARY, np.uint8)
    byte_kind: ByteKind = "none"
    if _is_byte_level(pipeline):
        byte_kind = "partial"
        for piece, token in pipeline.get_vocab(with_added_tokens=False).items():
            if not _is_text(piece):
                kind_V[token] = BYTES
    elif getattr(pipeline.model, "byte_fallback", False):
        byte_kind = "pieces"
        for byte in range(256):
            if (token := pipeline.token_to_id(f"<0x{byte:02X}>")) is not None:
                kind_V[token] = BYTES
    unknown = _unknown_ids(pipeline, backend.named_tokens.get("unk_token")) - set(tokenizer.control_ids.values())
    kind_V[sorted(unknown)] = UNKNOWN
    return TokenKinds(kind_V, bool(unknown), byte_kind)


def _unknown_ids(pipeline: tokenizers.Tokenizer, named: str | None) -> set[int]:
    """What the model itself gives for what it lacks, and what the folder calls so."""
    model: Any = pipeline.model
    names = {named, getattr(model, "unk_token", None)}
    ids = {pipeline.token_to_id(name) for name in names if name}
    state = getattr(model, "unk_id", None)
    return {token for token in (*ids, state) if token is not None}


def _is_byte_level(pipeline: tokenizers.Tokenizer) -> bool:
    decoder: Any = pipeline.decoder
    if decoder is None:
        return False
    table = json.loads(decoder.__getstate__())
    return any(part["type"] == "ByteLevel" for part in (table, *table.get("decoders", ())))


def _is_text(piece: str) -> bool:
    """Whether a byte-level piece is whole characters: valid UTF-8 once its stand-ins are bytes again."""
    table = byte_of_letter()
    try:
        bytes(table[letter] for letter in piece).decode()
    except KeyError:
        return True
    except UnicodeDecodeError:
        return False
    return True
