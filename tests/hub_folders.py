"""Small Hugging Face tokenizer folders of every kind: some spelled out, some trained on the spot."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

GPT2_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = LLAMA3_SPLIT.replace("{1,3}", "")
METASPACE_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
VOCABULARY = 2500
TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LETTERS = "abcdehilorstuvw.,!'"
PIECES = ("▁", "he", "ll", "llo", "▁he", "▁hello", "wor", "▁wor", "▁▁", "ld", "▁world", "</", "s>")
"""Those of two characters and more can be put together from those before them."""


class Folder(NamedTuple):
    """What is special about one folder."""

    pipeline: tokenizers.Tokenizer
    config: dict[str, Any]
    model_type: str | None = None
    others: dict[str, Any] = {}  # noqa: RUF012
    """More JSON files."""
    edits: dict[str, Any] = {}  # noqa: RUF012
    """Changes of the model's entries in `tokenizer.json`."""


def write_folder(directory: Path, folder: Folder) -> None:
    """Writes a folder as a model's authors would."""
    table = json.loads(folder.pipeline.to_str())
    table["model"] |= folder.edits
    files = {"tokenizer.json": table, "tokenizer_config.json": folder.config, **folder.others}
    if folder.model_type is not None:
        files["config.json"] = {"model_type": folder.model_type}
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_pieces(directory: Path, model: Path, tokenizer_config: dict[str, Any], **others: Any) -> None:
    """Writes a folder that holds a SentencePiece model and no `tokenizer.json`."""
    shutil.copyfile(model, directory / "tokenizer.model")
    for name, content in {"tokenizer_config": tokenizer_config, **others}.items():
        (directory / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def spell_bytes(split: str | None = None, special: Sequence[str] = TURNS) -> tokenizers.Tokenizer:
    """A byte-level tokenizer of 256 bytes, a few merges and special tokens."""
    merges = [("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo"), ("Ġ", "hello"), ("Ġ", "Ġ"), ("à", "¤"), ("Ċ", "Ċ")]
    ids = {piece: index for index, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    ids |= {left + right: 256 + index for index, (left, right) in enumerate(merges)}
    pipeline = tokenizers.Tokenizer(models.BPE(ids, merges))
    pipeline.pre_tokenizer = GPT2_BYTES
    if split is not None:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pipeline.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return pipeline


def spell_pieces() -> tokenizers.Tokenizer:
    """A byte-pair tokenizer over characters as converted from SentencePiece, splitting as Llama 2 once did."""
    ids = {
        piece: index for index, piece in enumerate(["<unk>", "<s>", "</s>", *BYTES, *LETTERS, "<", "/", ">", *PIECES])
    }
    merges = [
        (piece[:cut], piece[cut:])
        for piece in ids
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    pipeline = tokenizers.Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pipeline.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pipeline.decoder = decoders.Sequence([*METASPACE_DECODER, decoders.Strip(" ", 1, 0)])
    pipeline.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    return pipeline


def spell_unigram() -> tokenizers.Tokenizer:
    """A Unigram tokenizer whose vocabulary lacks most characters."""
    scores = {
        "<unk>": 0.0,
        "<s>": 0.0,
        "</s>": 0.0,
        "▁": -2.0,
        "▁hello": -3.0,
        "he": -4.0,
        "llo": -4.5,
        "▁wor": -5.0,
        "ld": -5.0,
    }
    scores |= {letter: -8.0 - 0.1 * index for index, letter in enumerate(LETTERS)} | {"<": -9.0, "/": -9.1, ">": -9.2}
    pipeline = tokenizers.Tokenizer(models.Unigram(list(scores.items()), unk_id=0))
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace()
    pipeline.decoder = decoders.Metaspace()
    pipeline.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    )
    return pipeline


def add_flagged(pipeline: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same with added tokens that trim, match whole words, are normalised, and are not special."""
    pipeline.add_tokens(
        [
            AddedToken("<think>", special=False, normalized=False),
            AddedToken("</think>", special=False, normalized=False),
            AddedToken("<a b>", special=False, normalized=True, lstrip=True),
            AddedToken("<tight>", special=True, rstrip=True, lstrip=True, normalized=False),
            AddedToken("word", special=False, single_word=True),
        ]
    )
    return pipeline


def describe_added(pipeline: tokenizers.Tokenizer) -> dict[str, dict[str, Any]]:
    """The `added_tokens_decoder` of `tokenizer_config.json`."""
    flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {
        str(index): {name: getattr(token, name) for name in flags}
        for index, token in pipeline.get_added_tokens_decoder().items()
    }


def make_golden_folder(kind: str) -> Folder:
    """One of the folders whose ids the golden table holds."""
    if kind == "qwen3":
        pipeline = add_flagged(spell_bytes(QWEN_SPLIT))
        tokens = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "bos_token": None}
        config = {"tokenizer_class": "Qwen2Tokenizer", **tokens, "added_tokens_decoder": describe_added(pipeline)}
        return Folder(pipeline, config, "qwen3")
    if kind == "cohere2":
        special = ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"]
        return Folder(spell_bytes(special=special), {"tokenizer_class": "CohereTokenizerFast"}, "cohere2")
    if kind == "olmo2":
        pipeline = spell_bytes(LLAMA3_SPLIT, special=["<|endoftext|>", "<|pad|>"])
        tokens = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "bos_token": "<|endoftext|>"}
        return Folder(pipeline, {"tokenizer_class": "GPT2Tokenizer", **tokens}, "olmo2")
    if kind == "gemma2":
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "mask_token": None}
        return Folder(spell_pieces(), {"tokenizer_class": "GemmaTokenizer", **tokens}, "gemma2")
    if kind in ("llama", "llama-legacy", "mistral"):
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": kind == "llama-legacy"}
        others = {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}}
        return Folder(spell_pieces(), config, "mistral" if kind == "mistral" else "llama", others)
    assert kind == "unigram", kind
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "bos_token": "<s>"}
    return Folder(spell_unigram(), {"tokenizer_class": "PreTrainedTokenizerFast", **tokens})


def train_bytes(
    texts: Sequence[str], *, split: str | None = None, nfc: bool = False, special: Sequence[str] = ()
) -> tokenizers.Tokenizer:
    """A byte-level byte-pair tokenizer, split as GPT-2 does unless told."""
    pipeline = tokenizers.Tokenizer(models.BPE())
    if nfc:
        pipeline.normalizer = normalizers.NFC()
    pipeline.pre_tokenizer = GPT2_BYTES
    if split is not None:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pipeline.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), byte_level])
    pipeline.decoder = decoders.ByteLevel()
    pipeline.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    pipeline.train_from_iterator(texts, trainer)
    pipeline.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return pipeline


def train_metaspace(texts: Sequence[str], *, special: Sequence[str], gemma: bool = False) -> tokenizers.Tokenizer:
    """A byte-pair tokenizer over characters with a piece for every byte, as converted from SentencePiece."""
    pipeline = tokenizers.Tokenizer(models.BPE(unk_token=special[0], fuse_unk=True, byte_fallback=True))
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never" if gemma else "first", split=True)
    specials = [*special, *BYTES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=specials, limit_alphabet=600, show_progress=False
    )
    pipeline.train_from_iterator(texts, trainer)
    table = json.loads(pipeline.to_str())
    table["added_tokens"] = [token for token in table["added_tokens"] if token["content"] in special]
    pipeline = tokenizers.Tokenizer.from_str(json.dumps(table))
    prefix = [] if gemma else [normalizers.Prepend("▁")]
    pipeline.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    pipeline.pre_tokenizer = None
    pipeline.decoder = decoders.Sequence(METASPACE_DECODER)
    if not gemma:
        pipeline.decoder = decoders.Sequence([*METASPACE_DECODER, decoders.Strip(" ", 1, 0)])
    return pipeline


def train_unigram(texts: Sequence[str], *, special: Sequence[str], unknown: str) -> tokenizers.Tokenizer:
    """A Unigram tokenizer with an unknown token, as T5 and XLM-R have."""
    pipeline = tokenizers.Tokenizer(models.Unigram())
    pipeline.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    pipeline.pre_tokenizer = pre_tokenizers.Metaspace()
    pipeline.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=list(special), unk_token=unknown, show_progress=False
    )
    pipeline.train_from_iterator(texts, trainer)
    return pipeline
