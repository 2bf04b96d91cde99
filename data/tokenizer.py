"""SentencePiece tokenizers: trained, loaded, saved; control tokens are ids that no text can produce."""

import dataclasses
import functools
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from data.config import TokenizerConfig
from data.schema import ROLES, DataError

PAD, BOS, END, UNKNOWN = "<pad>", "<bos>", "<end>", "<unk>"
ROLE_PIECES = {role: f"<{role}>" for role in ROLES}
SPACE = "\u2581"
"""SentencePiece writes a space as this character, so text that holds it is spelled in bytes instead."""
MODEL_FILE, TABLE_FILE = "tokenizer.model", "tokenizer.json"

# The trainer drops a whole sentence that holds NUL or U+2585, and makes no piece of tabs or line ends; they
# only separate training text. In encoding they are bytes.
TRAINING_BREAKS = re.compile("[\0\t\n\r\u2585]+")
TRAINING_LINE = 2000
"""Characters; the trainer counts positions inside a word in 16 bits."""
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
class Tokenizer:
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
        names = {PAD: self.pad_id, BOS: self.bos_id, END: self.end_id}
        names |= {ROLE_PIECES[role]: self.role_ids[role] for role in ROLES}
        by_id: dict[int, str] = {}
        for name, token in names.items():
            if token < 0:
                raise DataError(f"control token {name} has id {token}; ids start at 0")
            if token in by_id:
                raise DataError(f"control tokens {by_id[token]} and {name} share id {token}; give each its own")
            if token < self._processor.get_piece_size() and not self._processor.is_control(token):
                piece = self._processor.id_to_piece(token)
                raise DataError(f"control token {name} has id {token}, but text can spell its piece {piece!r}")
            by_id[token] = name

    def __reduce__(self):
        return functools.partial(Tokenizer, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}), ()

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 over the model's bytes and the control ids."""
        ids = json.dumps([self.pad_id, self.bos_id, self.end_id, [self.role_ids[role] for role in ROLES]])
        return hashlib.sha256(hashlib.sha256(self.model).digest() + ids.encode()).hexdigest()

    @functools.cached_property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive."""
        return max(self._processor.get_piece_size(), 1 + max(self._control_ids))

    @functools.cached_property
    def is_lossless(self) -> bool:
        """Whether every text comes back exactly: always for a trained tokenizer, seldom for a foreign one."""
        return all(self.decode(self.encode(probe)) == probe for probe in PROBES)

    def is_control(self, token: int) -> bool:
        """Whether the id is one no text encodes to."""
        return token in self._control_ids

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, never a control id. Raises DataError for a lone surrogate."""
        try:
            if SPACE not in text or self._adds_prefix:
                return self._processor.encode(text)
            return self._encode_around_spaces(text)
        except (RuntimeError, UnicodeEncodeError):
            raise DataError(f"text holds a lone surrogate, which no UTF-8 can spell: {text[:80]!r}") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; control ids are skipped, bytes that are no UTF-8 become U+FFFD.

        Raises DataError for an id outside the vocabulary.
        """
        try:
            text = b"".join([self._bytes[token] for token in ids if token not in self._control_ids])
        except (IndexError, TypeError) as error:
            raise DataError(f"cannot decode: ids run from 0 to {self.vocab_size - 1} ({error})") from None
        return text.decode("utf-8", errors="replace").removeprefix(" " if self._adds_prefix else "")

    def _encode_around_spaces(self, text: str) -> list[int]:
        spelled = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE.encode()]
        first, *rest = text.split(SPACE)
        ids = self._processor.encode(first)
        for part in rest:
            ids += spelled + self._processor.encode(part)
        return ids

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return _read_model(self.model)

    @functools.cached_property
    def _control_ids(self) -> frozenset[int]:
        ours = (self.pad_id, self.bos_id, self.end_id, *self.role_ids.values())
        size = self._processor.get_piece_size()
        return frozenset(ours) | {token for token in range(size) if self._processor.is_control(token)}

    @functools.cached_property
    def _adds_prefix(self) -> bool:
        """Whether the model puts a space before every text, which decoding then takes away."""
        return self._processor.normalize("a").startswith(SPACE)

    @functools.cached_property
    def _bytes(self) -> tuple[bytes, ...]:
        return tuple(_piece_bytes(self._processor, token) for token in range(self._processor.get_piece_size()))


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> Tokenizer:
    """Returns a byte-pair tokenizer trained on texts: the same texts in the same order give the same bytes.

    Its `vocab_size` is smaller than `config.vocab_size` where the texts hold too few distinct pairs.
    Raises DataError if there is no text, or more distinct characters than the vocabulary has room for.
    """
    lines = list(_training_lines(texts))
    if not lines:
        raise DataError("no text to train a tokenizer on: the sources gave none; check them, or set tokenizer.path")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_digits=True,
            max_sentence_length=5 * TRAINING_LINE,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=PAD,
            bos_piece=BOS,
            eos_piece=END,
            unk_piece=UNKNOWN,
            control_symbols=list(ROLE_PIECES.values()),
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DataError(_explain_training(error, config)) from None
    return _with_control_ids(model.getvalue())


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns the tokenizer of a `.model` file, or of a folder `save_tokenizer` wrote.

    Control tokens a foreign model lacks get ids after its last piece; a piece that text can spell is never
    taken for one. Raises DataError if something is missing or damaged, or is not what was saved.
    """
    path = Path(path)
    if not path.is_dir():
        return _with_control_ids(_read_bytes(path))
    model, table = _read_bytes(path / MODEL_FILE), _read_bytes(path / TABLE_FILE)
    try:
        stored = json.loads(table)
        ids = {key: stored[key] for key in ("pad_id", "bos_id", "end_id", "role_ids")}
        tokenizer = Tokenizer(model=model, **ids)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path / TABLE_FILE} is damaged ({error!r}); copy the tokenizer folder again") from None
    if tokenizer.hash != stored.get("hash"):
        raise DataError(
            f"{path}: the tokenizer's hash is {tokenizer.hash[:12]}, but {TABLE_FILE} says "
            f"{str(stored.get('hash'))[:12]}; a file was changed after it was saved: copy the folder again"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: str | Path) -> None:
    """Writes `tokenizer.model` and `tokenizer.json` (control ids, vocabulary size, hash) into a folder."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = {
        "format": 1,
        "pad_id": tokenizer.pad_id,
        "bos_id": tokenizer.bos_id,
        "end_id": tokenizer.end_id,
        "role_ids": tokenizer.role_ids,
        "vocab_size": tokenizer.vocab_size,
        "hash": tokenizer.hash,
    }
    (directory / MODEL_FILE).write_bytes(tokenizer.model)
    (directory / TABLE_FILE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _training_lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in TRAINING_BREAKS.split(text):
            for start in range(0, len(line), TRAINING_LINE):
                yield line[start : start + TRAINING_LINE]


def _with_control_ids(model: bytes) -> Tokenizer:
    """A tokenizer whose control ids are the model's own where it has them, else ids after its last piece."""
    processor = _read_model(model)
    fresh = iter(range(processor.get_piece_size(), processor.get_piece_size() + 3 + len(ROLES)))

    def find(token: int) -> int:
        return token if token >= 0 and processor.is_control(token) else next(fresh)

    return Tokenizer(
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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read tokenizer file {path}: {error.strerror}; check the path") from None


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, token: int) -> bytes:
    piece = processor.id_to_piece(token)
    if processor.is_byte(token):
        return bytes([int(piece[3:5], 16)])
    return "\ufffd".encode() if processor.is_unknown(token) else piece.replace(SPACE, " ").encode()


def _explain_training(error: RuntimeError, config: TokenizerConfig) -> str:
    if needed := re.search(r"required_chars\. \d+ vs (\d+)", str(error)):
        return (
            f"tokenizer.vocab_size {config.vocab_size} is too small: control tokens, 256 bytes and the "
            f"characters of the texts need {needed[1]} at character_coverage {config.character_coverage}; "
            f"raise the first or lower the second (the rest become bytes)"
        )
    return f"SentencePiece could not train a tokenizer of {config.vocab_size} pieces: {error}"
