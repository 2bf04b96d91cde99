"""Tokenizers as Hugging Face folders that give the same ids in transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from data.hub_backend import BYTE, BYTE_PAIRS, CONTROL, NORMAL, UNKNOWN, find_merges
from data.hub_classes import AS_IS
from data.hub_files import BACKEND_FILE, CONFIG_FILE, TEMPLATE_FILE, write_files
from data.hub_tokenizer import HubTokenizer
from data.schema import DataError
from data.sentencepiece_tokenizer import PROBES, SPACE, SentencePieceTokenizer
from data.tokenizer import Tokenizer


def write_hub_tokenizer(
    tokenizer: Tokenizer, directory: str | Path, *, chat_template: str | None, model_type: str | None = None
) -> None:
    """Writes the tokenizer as a Hugging Face folder that gives `encode_rendered`'s ids.

    A Hugging Face tokenizer's own files are written byte for byte; `chat_template` becomes `chat_template.jinja` if
    it is another than theirs. A SentencePiece model becomes a byte-pair `tokenizer.json`: its pieces with real spaces
    and the merges they imply. `model_type` is that of the `config.json` beside it.

    Raises DataError for a model that has no such form (Unigram, normalising, without byte pieces), naming what it
    has, and for a model type whose folders transformers splits in another way whatever `tokenizer.json` says.
    """
    if isinstance(tokenizer, HubTokenizer):
        files = dict(tokenizer.files)
        if chat_template is not None and chat_template != tokenizer.chat_template:
            files[TEMPLATE_FILE] = chat_template.encode()
            files[CONFIG_FILE] = _without_template(files[CONFIG_FILE])
    elif isinstance(tokenizer, SentencePieceTokenizer):
        files = {BACKEND_FILE: _dump(_describe_pipeline(tokenizer)), CONFIG_FILE: _dump(_describe_tokens(tokenizer))}
        if chat_template is not None:
            files[TEMPLATE_FILE] = chat_template.encode()
        _check_equal(tokenizer, HubTokenizer(files=files))
    else:
        raise DataError(f"a {type(tokenizer).__name__} cannot be exported; SentencePiece and Hugging Face ones can")
    if model_type is not None:
        _check_class(tokenizer, HubTokenizer(files=files, model_type=model_type), model_type)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_files(files, directory)


def _check_class(tokenizer: Tokenizer, exported: HubTokenizer, model_type: str) -> None:
    is_own = isinstance(tokenizer, HubTokenizer) and tokenizer.model_type == model_type
    expected = tokenizer.class_name if isinstance(tokenizer, HubTokenizer) else AS_IS
    if not is_own and exported.class_name != expected:
        raise DataError(
            f"transformers splits text for model type {model_type} as {exported.class_name}, whatever tokenizer.json "
            f"says, and this tokenizer as {expected}; export the model as another type, such as llama"
        )


def _without_template(config: bytes) -> bytes:
    """`tokenizer_config.json` without the chat template that another one replaces; some readers prefer that place."""
    table = json.loads(config)
    return (
        _dump({key: value for key, value in table.items() if key != "chat_template"})
        if "chat_template" in table
        else config
    )


def _describe_tokens(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """`tokenizer_config.json`; a text's end is the end of a turn, which is what a model trained here stops at."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **tokenizer.special_tokens,
        "extra_special_tokens": [
            name for name in tokenizer.control_ids if name not in tokenizer.special_tokens.values()
        ],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 10**30,
    }


def _describe_pipeline(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """`tokenizer.json`. Pieces hold real spaces, so text that holds U+2581 is spelled in bytes, as it is here."""
    model: Any = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model)  # pyright: ignore
    _check_model(model)
    ids = {_spell(piece): index for index, piece in enumerate(model.pieces)}
    if len(ids) < len(model.pieces):
        raise DataError("the SentencePiece model has pieces that differ only in spaces; it cannot be exported")
    adds_prefix = model.normalizer_spec.add_dummy_prefix
    prefix = [{"type": "Prepend", "prepend": " "}, {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_describe_control(name, token) for name, token in tokenizer.control_ids.items()],
        "normalizer": {"type": "Sequence", "normalizers": prefix} if adds_prefix else None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, *(strip if adds_prefix else [])],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": next(_spell(piece) for piece in model.pieces if piece.type == UNKNOWN),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": _order_merges(model),
        },
    }


def _check_model(model: Any) -> None:
    kinds = {piece.type for piece in model.pieces}
    spec = model.normalizer_spec
    problems = {
        "is no byte-pair model": model.trainer_spec.model_type != BYTE_PAIRS,
        "has no piece for every byte": sum(piece.type == BYTE for piece in model.pieces) != 256,
        "has unused or user-defined pieces": bool(kinds - {NORMAL, UNKNOWN, CONTROL, BYTE}),
        "normalises text": bool(spec.precompiled_charsmap) or spec.remove_extra_whitespaces,
        "does not write spaces as U+2581": not spec.escape_whitespaces,
        "puts spaces after words": model.trainer_spec.treat_whitespace_as_suffix,
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise DataError(
            f"the SentencePiece model {' and '.join(found)}, so no tokenizer.json gives its ids; export the tokenizer "
            "of the Hugging Face folder it came from, or train one (tokenizer.path unset)"
        )


def _spell(piece: Any) -> str:
    return piece.piece.replace(SPACE, " ") if piece.type == NORMAL else piece.piece


def _order_merges(model: Any) -> list[list[str]]:
    """The merges of the pieces text can spell: the highest score first, where scores tie the lowest id."""
    normal = [(index, piece) for index, piece in enumerate(model.pieces) if piece.type == NORMAL]
    ranked = sorted(normal, key=lambda item: (-item[1].score, item[0]))
    return [
        [left, right] for left, right in find_merges({_spell(piece): rank for rank, (_, piece) in enumerate(ranked)})
    ]


def _describe_control(name: str, token: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": name, **flags}


def _check_equal(tokenizer: SentencePieceTokenizer, exported: HubTokenizer) -> None:
    """Raises DataError if the two disagree on texts that have caught such differences before."""
    pieces = [tokenizer.decode([token]) for token in range(0, tokenizer.vocab_size, 1 + tokenizer.vocab_size // 5000)]
    runs = [character * length for character in " a.-=\n0" for length in range(1, 40)]
    names = ["".join(tokenizer.control_ids), " x ".join(tokenizer.control_ids)]
    for text in [*PROBES, *names, *runs, *pieces, " ".join(pieces), "".join(pieces)]:
        ours, theirs = tokenizer.encode_rendered(text), exported.encode_rendered(text)
        if ours != theirs:
            raise DataError(
                f"the exported tokenizer.json gives other ids for {text[:60]!r}: {theirs[:12]} instead of {ours[:12]}; "
                "this SentencePiece model cannot be exported"
            )


def _dump(table: Mapping[str, Any]) -> bytes:
    return (json.dumps(table, indent=2, ensure_ascii=False) + "\n").encode()
