"""The `tokenizers` pipeline of a Hugging Face folder, put together as transformers 5 does it."""

import functools
import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, decoders, normalizers
from tokenizers.models import BPE, Unigram

from data.hub_classes import AS_IS, CLASSES, Vocabulary, choose_class
from data.hub_files import (
    BACKEND_FILE,
    CONFIG_FILE,
    MODEL_FILE,
    NAMED_TOKENS,
    parse_table,
    read_declared,
    spell_token,
)
from data.schema import DataError

UNIGRAM, BYTE_PAIRS = 1, 2
"""Kinds of SentencePiece models."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Kinds of SentencePiece pieces; control and user-defined ones are matched before anything is split."""
# Settings of `tokenizer_config.json` that would change ids in ways not followed here.
REFUSED_SETTINGS = ("split_special_tokens", "fix_mistral_regex", "fast_tokenizer_files", "init_inputs")
Result = TypeVar("Result")


class Backend(NamedTuple):
    """A pipeline and what its special tokens are called."""

    pipeline: tokenizers.Tokenizer
    named_tokens: dict[str, str]
    """`bos_token` ... to spelling."""
    class_name: str


def build_backend(files: dict[str, bytes], *, model_type: str | None, config_class: str | None) -> Backend:
    """Returns the pipeline of the files; `model_type` and `config_class` are what the model's `config.json` says.

    Raises DataError for missing, damaged or contradictory files, and for settings whose ids would not be the
    reference's.
    """
    config = parse_table(files, CONFIG_FILE)
    if refused := [name for name in REFUSED_SETTINGS if config.get(name)]:
        raise DataError(f"{CONFIG_FILE} sets {refused[0]}, which polytune does not follow; take it out or convert")
    table = parse_table(files, BACKEND_FILE)
    class_name = choose_class(
        config.get("tokenizer_class") or config_class,
        model_type,
        has_byte_level=b'"ByteLevel"' in files.get(BACKEND_FILE, b""),
        has_code="AutoTokenizer" in (config.get("auto_map") or ()),
    )
    declared: dict[str, Any] = read_declared(files)
    if class_name in CLASSES:
        declared = {**CLASSES[class_name].named_tokens, **declared}
    if BACKEND_FILE in files:
        pipeline = _build_from_table(table, class_name, declared)
    elif MODEL_FILE in files:
        pipeline = _build_from_pieces(files[MODEL_FILE], class_name, declared)
    else:
        raise DataError(
            f"tokenizer_class {config.get('tokenizer_class')} needs {BACKEND_FILE}, or the SentencePiece {MODEL_FILE} "
            "of a Llama, Mistral or Gemma model; the folder has neither. transformers writes the first: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    pipeline.no_truncation()
    pipeline.no_padding()
    named: dict[str, Any] = {name: declared[name] for name in NAMED_TOKENS if declared.get(name) is not None}
    named |= declared["model_tokens"]
    _add_tokens(pipeline, named, declared, class_name)
    return Backend(pipeline, {name: spell_token(token) for name, token in named.items()}, class_name)


def _build_from_table(table: dict[str, Any], class_name: str, declared: dict[str, Any]) -> tokenizers.Tokenizer:
    model = table.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise DataError(f"{BACKEND_FILE} holds no model with a vocabulary; copy the file again")
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        raise DataError(f"{BACKEND_FILE} holds a {kind} model; byte-pair (BPE) and Unigram ones can be used")
    if model.get("dropout"):
        raise DataError(f"{BACKEND_FILE} has dropout {model['dropout']}: ids would be drawn; set it to null")
    if class_name == AS_IS:
        # What comes after splitting adds tokens or trims spans; neither is asked for.
        table = {**table, "post_processor": None}
        return _try(lambda: tokenizers.Tokenizer.from_str(json.dumps(table)), BACKEND_FILE)
    if kind != "BPE":
        raise DataError(f"{BACKEND_FILE} holds a {kind} model, but {class_name} is byte-pair (BPE); correct its class")
    merges: list[Any] = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]
    ]
    return _try(lambda: CLASSES[class_name].build(Vocabulary(model["vocab"], merges), declared), BACKEND_FILE)


def _build_from_pieces(content: bytes, class_name: str, declared: dict[str, Any]) -> tokenizers.Tokenizer:
    """A SentencePiece model as transformers reads it; its control and user-defined pieces join `declared`."""
    model: Any = sentencepiece_model_pb2.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]
    try:
        model.ParseFromString(content)
    except Exception:  # protobuf's own kind, which no declared dependency of ours names
        model.Clear()
    if not model.pieces:
        raise DataError(f"{MODEL_FILE} is no SentencePiece model; convert the tokenizer to {BACKEND_FILE}")
    kind = model.trainer_spec.model_type
    if kind not in (UNIGRAM, BYTE_PAIRS):
        raise DataError(f"{MODEL_FILE} is neither a byte-pair nor a Unigram model; convert it to {BACKEND_FILE}")
    unknown = model.trainer_spec.unk_id
    if 0 <= unknown < len(model.pieces) and model.pieces[unknown].type != UNKNOWN:
        raise DataError(
            f"{MODEL_FILE} contradicts itself: it says unk_id {unknown}, which is its piece "
            f"{model.pieces[unknown].piece!r}, no unknown one; convert the tokenizer to {BACKEND_FILE}"
        )
    if class_name not in (AS_IS, "LlamaTokenizer", "GemmaTokenizer") or (class_name != AS_IS and kind != BYTE_PAIRS):
        raise DataError(f"{class_name} cannot be read from this {MODEL_FILE}; convert the tokenizer to {BACKEND_FILE}")
    if "extra_special_tokens" not in declared:
        declared["extra_special_tokens"] = [
            AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)
            for piece in model.pieces
            if piece.type in (CONTROL, USER_DEFINED)
        ]
    if class_name == AS_IS:
        return _build_plain(model, declared)
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    return _try(lambda: CLASSES[class_name].build(Vocabulary(ids, find_merges(ids)), declared), MODEL_FILE)


def _build_plain(model: Any, declared: dict[str, Any]) -> tokenizers.Tokenizer:
    """A SentencePiece model that no class knows: no space is put before the text."""
    spec = model.trainer_spec
    for name in ("bos", "eos", "unk"):
        if getattr(spec, f"{name}_id") >= 0:
            declared.setdefault(f"{name}_token", getattr(spec, f"{name}_piece"))
    if spec.model_type == UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in model.pieces]
        build = functools.partial(Unigram, scores, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    else:
        ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
        merges = find_merges(ids)
        _rename_added(ids, declared["added"])
        options = {"unk_token": spec.unk_piece, "fuse_unk": True, "byte_fallback": spec.byte_fallback}
        build = functools.partial(BPE, ids, merges, **options)
    pipeline = tokenizers.Tokenizer(_try(build, MODEL_FILE))
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    if rules := model.normalizer_spec.precompiled_charsmap:
        steps.insert(0, _try(lambda: normalizers.Precompiled(rules), MODEL_FILE))
    pipeline.normalizer = normalizers.Sequence(steps)
    fallback = [decoders.ByteFallback(), decoders.Fuse()] if spec.byte_fallback else []
    pipeline.decoder = decoders.Sequence([decoders.Replace("▁", " "), *fallback])
    return pipeline


def find_merges(ids: dict[str, int]) -> list[tuple[str, str]]:
    """Returns the merges of a byte-pair vocabulary whose earlier pieces merge first.

    Every way to cut a piece into two pieces is one: by the id of the piece, then by the lengths of its halves.
    """
    merges = []
    for piece, index in ids.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids:
                merges.append((index, len(left), left, right))
    merges.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in merges]


def _rename_added(ids: dict[str, int], added: dict[int, AddedToken]) -> None:
    """Gives placeholder pieces the names that `added_tokens_decoder` has for their ids."""
    names = {index: piece for piece, index in ids.items()}
    for index, token in added.items():
        piece = names.get(index)
        if piece and piece != token.content and token.content not in ids:
            ids[token.content] = ids.pop(piece)
            names[index] = token.content


def _add_tokens(
    pipeline: tokenizers.Tokenizer, named: dict[str, Any], declared: dict[str, Any], class_name: str
) -> None:
    """Adds what the vocabulary lacks, in the order that gives the reference's ids. Raises DataError if it cannot."""
    present = pipeline.get_added_tokens_decoder()
    known = {repr(token) for token in present.values()}
    wanted: list[AddedToken | str] = [
        token for _, token in sorted(declared["added"].items()) if repr(token) not in known
    ]
    spelled = {token.content for token in present.values()} | {spell_token(token) for token in wanted}
    extra = declared.get("extra_special_tokens", declared.get("additional_special_tokens")) or []
    for token in [*named.values(), *extra]:
        if spell_token(token) not in spelled:
            wanted.append(token)
    names = {spell_token(token) for token in named.values()}
    pipeline.add_tokens([_mark(token, names) for token in wanted])
    if class_name in CLASSES and CLASSES[class_name].repeats_special:
        _repeat_special(pipeline, [*named.values(), *extra], class_name)
    for index, token in declared["added"].items():
        if pipeline.token_to_id(token.content) != index:
            raise DataError(
                f"the files contradict each other: token {token.content!r} is said to have id {index}, but the "
                f"vocabulary gives {pipeline.token_to_id(token.content)}; restore the folder"
            )


def _mark(token: AddedToken | str, names: set[str]) -> AddedToken:
    if isinstance(token, str):
        return AddedToken(token, special=True)
    if not token.special and token.content in names:
        token.special = True
    return token


def _repeat_special(pipeline: tokenizers.Tokenizer, tokens: list[AddedToken | str], class_name: str) -> None:
    if class_name == "CohereTokenizer":
        plain = [AddedToken(token, special=True, normalized=False) for token in tokens if isinstance(token, str)]
        pipeline.add_special_tokens([token for token in tokens if isinstance(token, AddedToken)] + plain)
    else:
        pipeline.add_tokens([AddedToken(spell_token(token), special=True) for token in tokens])


def _try(build: Callable[[], Result], name: str) -> Result:
    """Runs a step of the `tokenizers` library, which raises plain exceptions for what it cannot read."""
    try:
        return build()
    except Exception as error:
        raise DataError(f"{name} cannot be read ({error}); copy the file again, whole") from None
