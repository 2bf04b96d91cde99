"""The tokenizer of a Hugging Face folder: the ids transformers gives, its files kept as they are."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers

from data.hub_backend import Backend, build_backend
from data.hub_control import choose_pad, find_control, hide_control
from data.hub_files import CONFIG_FILE, TEMPLATE_FILE, TEMPLATE_FOLDER, find_template, read_files, write_files
from data.hub_spelling import Spelling, read_spelling
from data.schema import DataError
from data.sentencepiece_tokenizer import PROBES, TABLE_FILE

KIND = "hub"
# Keys of tokenizer_config.json that change no id.
INERT_KEYS = ("chat_template", "model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HubTokenizer:
    """The tokenizer files of a Hugging Face folder. Picklable; equal by content.

    Methods raise DataError where the files cannot be used; `load_hub_tokenizer` finds that out at once.
    """

    files: dict[str, bytes] = dataclasses.field(repr=False)
    """Name to content, byte for byte."""
    model_type: str | None = None
    """Of the `config.json` they lay beside: transformers splits text by it."""
    config_class: str | None = None
    """The `tokenizer_class` of that `config.json`."""

    def __reduce__(self):
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return functools.partial(HubTokenizer, **fields), ()

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    @property
    def hash(self) -> str:
        """sha256 over all that decides ids, so not the chat template."""
        return self._hash

    @property
    def vocab_size(self) -> int:
        """Ids run from 0 to this, exclusive; the model's embedding may be padded beyond it."""
        return self._vocab_size

    @property
    def chat_template(self) -> str | None:
        """The default chat template's Jinja source."""
        return self._chat_template

    @property
    def special_tokens(self) -> dict[str, str]:
        """The names chat templates use, and how the tokens are spelled."""
        return dict(self._backend.named_tokens)

    @property
    def class_name(self) -> str:
        """The class of transformers whose way of splitting text it has; `TokenizersBackend` is its file's own."""
        return self._backend.class_name

    @property
    def bos_id(self) -> int | None:
        """What starts a text, if anything does."""
        return self._find_named("bos_token")

    @property
    def eos_id(self) -> int | None:
        """What ends a text, if anything does."""
        return self._find_named("eos_token")

    @property
    def pad_id(self) -> int:
        """What fills rows, by `data.hub_control.choose_pad`: never the end of a text."""
        return self._pad_id

    @property
    def control_ids(self) -> dict[str, int]:
        """Ids of the control tokens by their spelling, in order of ids; see `data.hub_control.find_control`."""
        return dict(self._control_ids)

    @property
    def is_lossless(self) -> bool:
        """Whether every text comes back exactly, as far as a few hard ones tell."""
        return self._is_lossless

    def is_control(self, token: int) -> bool:
        """Whether the id is one no text encodes to."""
        return token in self._control

    def encode(self, text: str) -> list[int]:
        """Returns the ids of a text, never a control id, even where it spells one; nothing is added.

        Raises DataError for a lone surrogate, and for text the vocabulary can spell by a control token alone.
        """
        ids = self._encode_ids(text)
        if self._matched.isdisjoint(ids):
            return ids
        pipeline, renumbered = self._content
        ids = [renumbered.get(token, token) for token in pipeline.encode(text, add_special_tokens=False).ids]
        if not self._control.isdisjoint(ids):
            raise DataError(f"the tokenizer has only a control token to spell part of {text[:80]!r}; change the text")
        return ids

    def encode_rendered(self, text: str) -> list[int]:
        """Returns the ids of a rendered template, as transformers without `add_special_tokens`.

        Raises DataError for a lone surrogate.
        """
        return self._encode_ids(text)

    def encode_rendered_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode_rendered`, with the span of each id in characters of the text.

        Raises DataError for a lone surrogate.
        """
        try:
            encoding = self._pipeline.encode(text, add_special_tokens=False)
        except TypeError:
            raise _refuse_surrogate(text) from None
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids as transformers with `skip_special_tokens`: special tokens give nothing.

        Nor do ids past the vocabulary, by which models pad their embedding. Raises DataError for negative ids.
        """
        ids = list(map(int, ids))
        if min(ids, default=0) < 0:
            raise DataError(f"cannot decode id {min(ids)}; ids run from 0 to {self.vocab_size - 1}")
        return self._pipeline.decode(ids, skip_special_tokens=True)

    def save(self, directory: str | Path) -> None:
        """Writes the files as they were, and `polytune_tokenizer.json` with what lay beside them and the hash."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        write_files(self.files, directory)
        table = {
            "format": 1,
            "kind": KIND,
            "model_type": self.model_type,
            "config_class": self.config_class,
            "files": sorted(self.files),
            "pad_id": self.pad_id,
            "vocab_size": self.vocab_size,
            "hash": self.hash,
        }
        (directory / TABLE_FILE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

    def _encode_ids(self, text: str) -> list[int]:
        try:
            # Of one text: only this call leaves out the offsets, which cost a third of it.
            return self._pipeline.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError:
            raise _refuse_surrogate(text) from None

    def _find_named(self, name: str) -> int | None:
        spelled = self.special_tokens.get(name)
        return None if spelled is None else self._pipeline.token_to_id(spelled)

    @functools.cached_property
    def spelling(self) -> Spelling | None:
        """What each id spells, where that tells where ids stand in a text."""
        return read_spelling(self._pipeline)

    @functools.cached_property
    def _config(self) -> dict[str, Any]:
        return json.loads(self.files.get(CONFIG_FILE, b"{}"))

    @functools.cached_property
    def _backend(self) -> Backend:
        return build_backend(self.files, model_type=self.model_type, config_class=self.config_class)

    @property
    def _pipeline(self) -> tokenizers.Tokenizer:
        return self._backend.pipeline

    @functools.cached_property
    def _hash(self) -> str:
        config = {key: value for key, value in self._config.items() if key not in INERT_KEYS}
        deciding = {name: content for name, content in self.files.items() if not _is_template(name)}
        deciding[CONFIG_FILE] = json.dumps(config, sort_keys=True).encode()
        parts = [self.class_name, json.dumps([self.pad_id, sorted(self.control_ids.items())])]
        for name, content in sorted(deciding.items()):
            parts += [name, hashlib.sha256(content).hexdigest()]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @functools.cached_property
    def _vocab_size(self) -> int:
        return 1 + max(self._pipeline.get_vocab(with_added_tokens=True).values())

    @functools.cached_property
    def _chat_template(self) -> str | None:
        return find_template(self.files)

    @functools.cached_property
    def _pad_id(self) -> int:
        name = choose_pad(self.control_ids, self.special_tokens, self.chat_template)
        token = self._pipeline.token_to_id(name)
        assert token is not None, name
        return token

    @functools.cached_property
    def _is_lossless(self) -> bool:
        return all(self.decode(self.encode(probe)) == probe for probe in PROBES)

    @functools.cached_property
    def _control_ids(self) -> dict[str, int]:
        ends = (None, self.bos_id, self.eos_id)
        unknown_id = self._find_named("unk_token")
        return find_control(self._pipeline, template=self.chat_template, unknown_id=unknown_id, ends=ends)

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        return frozenset(self._control_ids.values())

    @functools.cached_property
    def _matched(self) -> frozenset[int]:
        """Ids of tokens that text must not spell, even if it can give them as unknown."""
        special = {token for token, flags in self._pipeline.get_added_tokens_decoder().items() if flags.special}
        return self._control | special

    @functools.cached_property
    def _content(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        return hide_control(self._pipeline, self._matched)


def load_hub_tokenizer(directory: str | Path) -> HubTokenizer:
    """Returns the tokenizer of a Hugging Face folder, or of one that `HubTokenizer.save` wrote.

    Raises DataError if files are missing, damaged, contradict each other, or are not what was saved.
    """
    directory = Path(directory)
    files = read_files(directory)
    try:
        if (directory / TABLE_FILE).exists():
            return _load_saved(directory / TABLE_FILE, files)
        if not files.keys() & {"tokenizer.json", CONFIG_FILE}:
            found = ", ".join(sorted(path.name for path in directory.glob("*"))) or "nothing"
            raise DataError(f"no tokenizer: it needs {TABLE_FILE}, tokenizer.json or {CONFIG_FILE}; it holds {found}")
        config = _read_table(directory / "config.json")
        tokenizer = HubTokenizer(
            files=files, model_type=config.get("model_type"), config_class=config.get("tokenizer_class")
        )
        return _check(tokenizer)
    except DataError as error:
        raise DataError(f"{directory}: {error}") from None


def _load_saved(file: Path, files: dict[str, bytes]) -> HubTokenizer:
    table = _read_table(file)
    if table.get("kind") != KIND or not isinstance(table.get("files"), list):
        raise DataError(f"{file.name} is damaged (kind {table.get('kind')!r}); copy the tokenizer folder again")
    if missing := set(table["files"]) - set(files):
        raise DataError(f"{sorted(missing)[0]} is missing; copy the tokenizer folder again")
    tokenizer = HubTokenizer(
        files={name: files[name] for name in table["files"]},
        model_type=table.get("model_type"),
        config_class=table.get("config_class"),
    )
    if _check(tokenizer).hash != table.get("hash"):
        raise DataError(
            f"the tokenizer's hash is {tokenizer.hash[:12]}, but {file.name} says {str(table.get('hash'))[:12]}; a "
            "file was changed after it was saved: copy the folder again"
        )
    return tokenizer


def _check(tokenizer: HubTokenizer) -> HubTokenizer:
    """Builds what would else be built, and could fail, at first use."""
    _ = tokenizer.pad_id, tokenizer.vocab_size, tokenizer.hash
    return tokenizer


def _read_table(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_bytes()) if file.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{file.name} is damaged ({error}); copy it again") from None
    if not isinstance(table, dict):
        raise DataError(f"{file.name} holds no JSON table; copy it again")
    return table


def _refuse_surrogate(text: str) -> DataError:
    return DataError(f"text holds a lone surrogate, which no UTF-8 can spell: {text[:80]!r}")


def _is_template(name: str) -> bool:
    return name == TEMPLATE_FILE or name.startswith(TEMPLATE_FOLDER)
