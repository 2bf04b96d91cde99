"""What every tokenizer does, and how one is found on disk."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from data.hub_tokenizer import HubTokenizer, load_hub_tokenizer
from data.schema import DataError
from data.sentencepiece_tokenizer import (
    KIND,
    MODEL_FILE,
    OLD_TABLE_FILE,
    TABLE_FILE,
    SentencePieceTokenizer,
    add_control_ids,
)
from data.tokenizer_training import train_tokenizer

__all__ = [
    "HubTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "load_tokenizer",
    "save_tokenizer",
    "train_tokenizer",
]


class Tokenizer(Protocol):
    """Text to ids and back. Picklable, hashable, equal by content.

    Control tokens are those that structure a conversation: no text encodes to one.
    """

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive."""
        ...

    @property
    def pad_id(self) -> int:
        """What fills rows; never a token that ends a turn or a text."""
        ...

    @property
    def bos_id(self) -> int | None:
        """What starts a text, if anything does."""
        ...

    @property
    def eos_id(self) -> int | None:
        """What ends a turn or a text, if anything does."""
        ...

    @property
    def hash(self) -> str:
        """sha256 over all that decides ids."""
        ...

    @property
    def is_lossless(self) -> bool:
        """Whether every text comes back exactly."""
        ...

    @property
    def control_ids(self) -> Mapping[str, int]:
        """Ids of the control tokens by their spelling."""
        ...

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """The names chat templates use (`bos_token` ...), and how the tokens are spelled."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The Jinja source that came with the tokenizer."""
        ...

    def is_control(self, token: int) -> bool:
        """Whether the id is one no text encodes to."""
        ...

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, never a control id, even where it spells one; nothing is added."""
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Returns the ids of a rendered template: control tokens spelled in it become their ids; nothing is added."""
        ...

    def encode_rendered_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode_rendered`, with the span of each id in characters of the text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; control ids are skipped."""
        ...

    def save(self, directory: str | Path) -> None:
        """Writes a folder that `load_tokenizer` reads."""
        ...


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a folder that `save` wrote, a SentencePiece `.model` file, or a Hugging Face folder.

    Control tokens a foreign model lacks get ids after its last piece; a piece that text can spell is never
    taken for one. A Hugging Face folder (or its `tokenizer.json`) gives the ids transformers gives.
    Raises DataError if something is missing or damaged, or is not what was saved.
    """
    path = Path(path)
    if not path.is_dir():
        return (
            load_tokenizer(path.parent)
            if path.name == OLD_TABLE_FILE and path.exists()
            else add_control_ids(_read_bytes(path))
        )
    if (path / TABLE_FILE).exists():
        table = _read_table(path / TABLE_FILE)
        return _load_saved(path, table) if table.get("kind") == KIND else load_hub_tokenizer(path)
    old = path / OLD_TABLE_FILE
    # Ours is short; Hugging Face's file of that name may take seconds to parse.
    if old.exists() and old.stat().st_size < 4096 and "role_ids" in (table := _read_table(old)):
        return _load_saved(path, table)
    return load_hub_tokenizer(path)


def fits_vocabulary(tokenizer: Tokenizer, size: int) -> bool:
    """Whether a model of `size` embeddings has one for whatever text becomes, and for what fills rows.

    Only control tokens may lie beyond, as they do where a text model shares the tokenizer of one that sees images.
    """
    beyond = set(range(size, tokenizer.vocab_size))
    known = set(tokenizer.control_ids.values()) if isinstance(tokenizer, HubTokenizer) else set()
    return beyond <= known and tokenizer.pad_id < size


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes a folder that `load_tokenizer` reads."""
    tokenizer.save(directory)


def _load_saved(path: Path, table: dict[str, Any]) -> SentencePieceTokenizer:
    try:
        ids = {key: table[key] for key in ("pad_id", "bos_id", "end_id", "role_ids")}
        tokenizer = SentencePieceTokenizer(model=_read_bytes(path / MODEL_FILE), **ids)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: the tokenizer's table is damaged ({error!r}); copy the folder again") from None
    if tokenizer.hash != table.get("hash"):
        raise DataError(
            f"{path}: the tokenizer's hash is {tokenizer.hash[:12]}, but its table says "
            f"{str(table.get('hash'))[:12]}; a file was changed after it was saved: copy the folder again"
        )
    return tokenizer


def _read_table(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(_read_bytes(file))
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); copy the tokenizer folder again") from None
    if not isinstance(table, dict):
        raise DataError(f"{file} is damaged (it holds no table); copy the tokenizer folder again")
    return table


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read tokenizer file {path}: {error.strerror}; check the path") from None
