"""SentencePiece tokenizers with control tokens: ids that no text can produce."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_pb2

from data.schema import ROLES, DataError

PAD, BOS, END, UNKNOWN = "<pad>", "<bos>", "<end>", "<unk>"
ROLE_PIECES = {role: f"<{role}>" for role in ROLES}
SPACE = "\u2581"
"""SentencePiece writes a space as this character, so text that holds it is spelled in bytes instead."""
MODEL_FILE, TABLE_FILE = "tokenizer.model", "polytune_tokenizer.json"
OLD_TABLE_FILE = "tokenizer.json"
"""What polytune called its table until Hugging Face's file of that name could lie in the same place."""
KIND = "sentencepiece"

# Texts that a tokenizer which normalises, trims or has no byte pieces does not give back.
PROBES = (
    "  a  b ",
    "\ta\n\r\n",
    "ﬁ ① Å ｶ",
    "e\u0301 \u0307\u0323",
    "\0\x7f\u200b\ufeff",
    SPACE,
    "⁇ 😀 ߒ",
    "<user>",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer:
    """A SentencePiece model and the ids of the control tokens. Picklable; equal by content.

    Raises DataError if two control tokens share an id: with pad = end-of-turn no model ever learns to stop.
    """

    model: bytes = dataclasses.field(repr=False)
    """The `.model` file."""
    pad_id: int
    bos_id: int
    end_id: int
    """End of turn."""
    role_ids: dict[str, int]
    """Id of the token that opens a turn, by role."""

    def __post_init__(self) -> None:
        by_id: dict[int, str] = {}
        for name, token in self._own_ids.items():
            if token < 0:
                raise DataError(f"control token {name} has id {token}; ids start at 0")
            if token in by_id:
                raise DataError(f"control tokens {by_id[token]} and {name} share id {token}; give each its own")
            if token < self._processor.get_piece_size() and not self._processor.is_control(token):
                piece = self._processor.id_to_piece(token)
                raise DataError(f"control token {name} has id {token}, but text can spell its piece {piece!r}")
            by_id[token] = name

    def __reduce__(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return functools.partial(SentencePieceTokenizer, **fields), ()

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    @property
    def hash(self) -> str:
        """sha256 over the model's bytes and the control ids."""
        return self._hash

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive."""
        return self._vocab_size

    @property
    def is_lossless(self) -> bool:
        """Whether every text comes back exactly: always for a trained tokenizer, seldom for a foreign one."""
        return self._is_lossless

    @property
    def eos_id(self) -> int:
        """The end-of-turn token's."""
        return self.end_id

    @property
    def special_tokens(self) -> dict[str, str]:
        """The names chat templates use, and how the tokens are spelled."""
        spelled = {token: name for name, token in self.control_ids.items()}
        ids = {"bos_token": self.bos_id, "eos_token": self.end_id, "pad_token": self.pad_id}
        return {name: spelled[token] for name, token in ids.items()}

    @property
    def chat_template(self) -> None:
        """A SentencePiece model carries no chat template."""
        return None

    @property
    def control_ids(self) -> dict[str, int]:
        """Ids of control tokens by their spelling: the model's own pieces, then ours that it lacks."""
        return dict(self._control_ids)

    def is_control(self, token: int) -> bool:
        """Whether the id is one no text encodes to."""
        return token in self._control

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, never a control id. Raises DataError for a lone surrogate."""
        try:
            if SPACE not in text or self._adds_prefix:
                return self._processor.encode(text)
            return self._encode_around_spaces(text)
        except (RuntimeError, UnicodeEncodeError):
            raise DataError(f"text holds a lone surrogate, which no UTF-8 can spell: {text[:80]!r}") from None

    def encode_rendered(self, text: str) -> list[int]:
        """Returns the ids of a rendered template: control tokens spelled in it become their ids.

        Raises DataError for a lone surrogate.
        """
        ids: list[int] = []
        for part in self._split_rendered(text):
            token = self._control_ids.get(part)
            ids += self.encode(part) if token is None else [token]
        return ids

    def encode_rendered_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode_rendered`, with each id's span in characters; the bytes of one character share its span.

        Raises DataError for a lone surrogate.
        """
        ids, spans, start = [], [], 0
        for part in self._split_rendered(text):
            token = self._control_ids.get(part)
            found = self._encode_spans(part) if token is None else [(token, 0, len(part))]
            ids += [token for token, _, _ in found]
            spans += [(start + begin, start + end) for _, begin, end in found]
            start += len(part)
        return ids, spans

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; control ids are skipped, bytes that are no UTF-8 become U+FFFD.

        Raises DataError for an id outside the vocabulary.
        """
        try:
            text = b"".join([self._bytes[token] for token in ids if token not in self._control])
        except (IndexError, TypeError) as error:
            raise DataError(f"cannot decode: ids run from 0 to {self.vocab_size - 1} ({error})") from None
        return text.decode("utf-8", errors="replace").removeprefix(" " if self._adds_prefix else "")

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.model` and `polytune_tokenizer.json` (control ids, vocabulary size, hash)."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        table = {
            "format": 1,
            "kind": KIND,
            "pad_id": self.pad_id,
            "bos_id": self.bos_id,
            "end_id": self.end_id,
            "role_ids": self.role_ids,
            "vocab_size": self.vocab_size,
            "hash": self.hash,
        }
        (directory / MODEL_FILE).write_bytes(self.model)
        (directory / TABLE_FILE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    @functools.cached_property
    def _hash(self) -> str:
        ids = json.dumps([self.pad_id, self.bos_id, self.end_id, [self.role_ids[role] for role in ROLES]])
        return hashlib.sha256(hashlib.sha256(self.model).digest() + ids.encode()).hexdigest()

    @functools.cached_property
    def _vocab_size(self) -> int:
        return max(self._processor.get_piece_size(), 1 + max(self._control))

    @functools.cached_property
    def _is_lossless(self) -> bool:
        return all(self.decode(self.encode(probe)) == probe for probe in PROBES)

    @functools.cached_property
    def _control_ids(self) -> dict[str, int]:
        size = self._processor.get_piece_size()
        pieces = {self._processor.id_to_piece(token): token for token in self._control if token < size}
        fresh = {name: token for name, token in self._own_ids.items() if token >= size}
        return dict(sorted((pieces | fresh).items(), key=lambda item: item[1]))

    def _encode_around_spaces(self, text: str) -> list[int]:
        first, *rest = text.split(SPACE)
        ids = self._processor.encode(first)
        for part in rest:
            ids += self._spelled_space + self._processor.encode(part)
        return ids

    def _split_rendered(self, text: str) -> list[str]:
        return [part for part in self._control_pattern.split(text) if part]

    def _encode_spans(self, text: str) -> list[tuple[int, int, int]]:
        """Ids of a text with the characters each stands for."""
        found, start = [], 0
        for part in (text,) if self._adds_prefix else re.split(f"({SPACE})", text):
            if part == SPACE and not self._adds_prefix:
                found += [(token, start, start + 1) for token in self._spelled_space]
            else:
                found += [(token, start + begin, start + end) for token, begin, end in self._encode_part(part)]
            start += len(part)
        return found

    def _encode_part(self, text: str) -> list[tuple[int, int, int]]:
        ids = self.encode(text)  # raises for a lone surrogate
        return self._place_by_length(text, ids) or self._place_by_proto(text)

    def _place_by_length(self, text: str, ids: list[int]) -> list[tuple[int, int, int]] | None:
        """Where ids stand whose pieces, one after the other, are the text; None if they are not, because the model
        normalises or knows no such character."""
        pieces = [self._bytes[token] for token in ids]
        encoded, prefix = text.encode(), b" " if self._adds_prefix else b""
        if b"".join(pieces) != prefix + encoded:
            return None
        # The character that each byte belongs to.
        characters = np.cumsum((np.frombuffer(encoded, np.uint8) & 0xC0) != 0x80) - 1
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        ends = np.maximum(np.cumsum(lengths) - len(prefix), 0)
        starts = np.append(0, ends)[: len(ends)]
        firsts = np.append(characters, len(text))[starts]
        lasts = np.where(ends > starts, np.append(characters, len(text))[ends - 1] + 1, firsts)
        return list(zip(ids, firsts.tolist(), lasts.tolist(), strict=True))

    def _place_by_proto(self, text: str) -> list[tuple[int, int, int]]:
        serialized = self._processor.encode(text, out_type="serialized_proto")
        pieces: list[Any] = list(sentencepiece_pb2.SentencePieceText.FromString(serialized).pieces)  # pyright: ignore
        characters = _count_characters(text)
        found, end = [], 0
        for piece in reversed(pieces):
            # All but the last byte of a character are said to be empty.
            is_inner = self._processor.is_byte(piece.id) and piece.begin == piece.end
            end = end if is_inner else piece.end
            found.append((piece.id, characters[piece.begin], characters[end]))
        return found[::-1]

    @functools.cached_property
    def _own_ids(self) -> dict[str, int]:
        names = {PAD: self.pad_id, BOS: self.bos_id, END: self.end_id}
        return names | {ROLE_PIECES[role]: self.role_ids[role] for role in ROLES}

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        pieces = range(self._processor.get_piece_size())
        return frozenset(filter(self._processor.is_control, pieces)) | frozenset(self._own_ids.values())

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        """Finds spelled control tokens, the longest where one starts another."""
        return re.compile(f"({'|'.join(map(re.escape, sorted(self._control_ids, key=len, reverse=True)))})")

    @functools.cached_property
    def _spelled_space(self) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return _read_model(self.model)

    @functools.cached_property
    def _adds_prefix(self) -> bool:
        """Whether the model puts a space before every text, which decoding then takes away."""
        return self._processor.normalize("a").startswith(SPACE)

    @functools.cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(_piece_bytes(self._processor, token) for token in range(self._processor.get_piece_size()))


def add_control_ids(model: bytes) -> SentencePieceTokenizer:
    """Returns the tokenizer of a model: control ids are its own where it has them, else follow its last piece."""
    processor = _read_model(model)
    fresh = iter(range(processor.get_piece_size(), processor.get_piece_size() + 3 + len(ROLES)))

    def find(token: int) -> int:
        return token if token >= 0 and processor.is_control(token) else next(fresh)

    return SentencePieceTokenizer(
        model=model,
        pad_id=find(processor.pad_id()),
        bos_id=find(processor.bos_id()),
        end_id=find(processor.eos_id()),
        role_ids={role: find(processor.piece_to_id(piece)) for role, piece in ROLE_PIECES.items()},
    )


def _read_model(model: bytes) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
    except (RuntimeError, OSError):
        raise DataError(f"{len(model)} bytes are no SentencePiece model; give the path of a `.model` file") from None
    return processor


def _count_characters(text: str) -> list[int]:
    """The character each byte of a text belongs to, then the number of characters: `aéb` gives [0, 1, 1, 2, 3]."""
    counts = [index for index, character in enumerate(text) for _ in character.encode()]
    return [*counts, len(text)]


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[3:5], 16)])
    return "\ufffd".encode() if processor.is_unknown(token) else piece.replace(SPACE, " ").encode()
