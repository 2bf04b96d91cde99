"""Tokenizer ids against transformers, on text in every script of the real data and on random Unicode."""

import json
import os
import random
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from golden_tokenizers import GOLDEN
from hub_folders import (
    LLAMA3_SPLIT,
    QWEN_SPLIT,
    Folder,
    add_flagged,
    describe_added,
    make_golden_folder,
    train_bytes,
    train_metaspace,
    train_unigram,
    write_folder,
    write_pieces,
)
from tokenizers import AddedToken
from transformers import AutoTokenizer
from transformers.models.auto import tokenization_auto

from data.config import TokenizerConfig
from data.hub_classes import AS_IS, CLASSES, DISTRUSTED, MODEL_CLASSES, OTHER_CLASSES
from data.schema import DataError
from data.tokenizer import load_tokenizer, train_tokenizer
from data.tokenizer_export import write_hub_tokenizer

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),
]
PER_LANGUAGE = 12
"""Texts; the trained tokenizers see a quarter of them."""
END, TURN, THINK = "<|endoftext|>", "<|im_end|>", "<think>"
CHAT = ["<|im_start|>", TURN, END]
ODD = ["\0", "\t", "\n", "\r\n", "  ", "    ", "▁", "▁▁", "e\u0301", "ﬁ", "①", "\u200d", "\ufeff", "٣", "12345", "…"]
ODD += [
    "😀",
    "👩\u200d👩\u200d👧",
    "\U0010ffff",
    "\u0378",
    "<0x41>",
    "<unk>",
    "</s>",
    "<s>",
    "'s",
    "ｶ",
    " ",
    "a",
    "Z",
    ".",
]


def _strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not key.startswith("_"):
                yield from _strings(item)


@pytest.fixture(scope="module")
def realdata() -> Path:
    folder = os.environ.get("POLYTUNE_REALDATA")
    if not folder:
        pytest.skip("POLYTUNE_REALDATA is not set")
    return Path(folder)


@pytest.fixture(scope="module")
def texts(realdata) -> list[str]:
    """A few texts of every language, in every script; then strings of odd pieces; in a set order."""
    by_language: dict[str, list[str]] = {}
    for file in sorted([*realdata.glob("train/*.jsonl"), *realdata.glob("eval/**/*.jsonl")]):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the one bad row of the real data
                continue
            language = row.get("_lang", file.stem)
            by_language.setdefault(language, []).extend(text for text in _strings(row) if text)
    draw = random.Random(0)
    found = [text for rows in by_language.values() for text in draw.sample(rows, min(PER_LANGUAGE, len(rows)))]
    assert len(by_language) > 300
    return found


@pytest.fixture(scope="module")
def odd_texts() -> list[str]:
    draw = random.Random(1)
    pieces = ODD + CHAT + [THINK, "</think>", "<pad>", "[INST]", "<a b>", "<tight>", "word"]
    joined = ["".join(draw.choices(pieces, k=draw.randint(0, 12))) for _ in range(1500)]
    ranges = [(0, 0x250), (0x300, 0x370), (0x590, 0x700), (0x900, 0xE80), (0x2000, 0x2600), (0x3040, 0x9FFF)]
    ranges += [(0xE000, 0xFFFF), (0x10000, 0x1FFFF)]
    plain = ["".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(20)) for _ in range(500)]
    return joined + plain


def _check(directory: Path, texts: list[str]) -> None:
    ours, theirs = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert ours.special_tokens == theirs.special_tokens_map
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == 1 + max(theirs.get_vocab().values())
    for text in texts:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode_rendered(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        content = ours.encode(text)
        assert not any(map(ours.is_control, content)), text
        if not any(name in text for name in [*ours.control_ids, "<unk>"]):
            assert content == ids
    assert ours.pad_id not in (ours.eos_id, ours.bos_id)


def _make(kind: str, texts: list[str]) -> Folder:
    if kind == "gpt2":
        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
        return Folder(train_bytes(texts, special=[END, "<|pad|>"]), config, "gpt2")
    if kind == "llama3":
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|reserved_special_token_0|>"]
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": special[0], "eos_token": special[2]}
        pipeline = train_bytes(texts, split=LLAMA3_SPLIT, special=special)
        return Folder(pipeline, config, "llama", edits={"ignore_merges": True})
    if kind == "llama3-misnamed":
        config = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": TURN, "legacy": True}
        return Folder(train_bytes(texts, split=LLAMA3_SPLIT, special=CHAT), config, "llama")
    if kind in ("qwen3", "qwen2", "qwen2-no-config"):
        pipeline = train_bytes(texts, split=QWEN_SPLIT, nfc=True, special=CHAT)
        add_flagged(pipeline)
        config = {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": TURN,
            "pad_token": END,
            "bos_token": None,
            "unk_token": None,
            "additional_special_tokens": CHAT[:2],
            "added_tokens_decoder": describe_added(pipeline),
            "split_special_tokens": False,
        }
        model_type = {"qwen3": "qwen3", "qwen2": "qwen2"}.get(kind)
        return Folder(pipeline, config, model_type)
    if kind == "cohere":
        config = {"tokenizer_class": "CohereTokenizerFast", "add_prefix_space": False}
        special = ["<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"]
        return Folder(train_bytes(texts, nfc=True, special=special), config, "cohere2")
    if kind == "olmoe":
        pipeline = train_bytes(texts, nfc=True, special=[END, "<|padding|>"])
        add_flagged(pipeline)
        config = {"tokenizer_class": "GPTNeoXTokenizer", "eos_token": END, "pad_token": "<|padding|>"}
        return Folder(pipeline, config, "olmoe")
    if kind == "gemma":
        pipeline = train_metaspace(
            texts,
            special=["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"],
            gemma=True,
        )
        pipeline.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("  ", normalized=False)])
        add_flagged(pipeline)
        tokens = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
        return Folder(pipeline, {"tokenizer_class": "GemmaTokenizer", **tokens}, "gemma3_text")
    if kind.startswith("llama2"):
        pipeline = train_metaspace(texts, special=["<unk>", "<s>", "</s>"])
        add_flagged(pipeline)
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": kind.endswith("legacy"), "unk_token": "<unk>"}
        if kind == "llama2-no-space":
            config["add_prefix_space"] = False
        others = {"special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}}
        return Folder(pipeline, config, "mistral" if kind == "llama2-mistral" else "llama", others)
    assert kind == "unigram"
    pipeline = train_unigram(texts, special=["<pad>", "</s>", "<unk>", "<s>"], unknown="<unk>")
    add_flagged(pipeline)
    tokens = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    others = {"special_tokens_map.json": {"additional_special_tokens": ["<extra_1>"], "bos_token": "<s>"}}
    return Folder(pipeline, {"tokenizer_class": "PreTrainedTokenizerFast", **tokens}, None, others)


KINDS = ["gpt2", "llama3", "llama3-misnamed", "qwen3", "qwen2", "qwen2-no-config", "cohere", "olmoe", "gemma"]
KINDS += ["llama2", "llama2-legacy", "llama2-no-space", "llama2-mistral", "unigram"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_ids_of_transformers(kind, texts, odd_texts, tmp_path):
    write_folder(tmp_path, _make(kind, texts[::4]))
    _check(tmp_path, texts + odd_texts)


@pytest.mark.parametrize(
    "config",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"tokenizer_class": "LlamaTokenizer", "legacy": True},
        {"tokenizer_class": "LlamaTokenizerFast", "add_prefix_space": False, "pad_token": "<unk>"},
        {"tokenizer_class": "LlamaTokenizer", "additional_special_tokens": ["<|im_start|>", TURN]},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"tokenizer_class": "SomethingOfTheirOwn", "eos_token": "</s>"},
        {},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("model_type", [None, "mistral"])
def test_a_sentencepiece_folder_gives_the_ids_of_transformers(config, model_type, realdata, texts, odd_texts, tmp_path):
    others = {} if model_type is None else {"config": {"model_type": model_type}}
    model = realdata / "tokenizers" / "mistral-v3.32k.sentencepiece.model"
    write_pieces(tmp_path, model, config, added_tokens={TURN: 32768, "<|im_start|>": 32769}, **others)
    _check(tmp_path, texts[::6] + odd_texts[::3])


def test_a_unigram_sentencepiece_folder_gives_the_ids_of_transformers(realdata, texts, odd_texts, tmp_path):
    write_pieces(tmp_path, realdata / "tokenizers" / "chinese_20k.sentencepiece.model", {})
    _check(tmp_path, texts[::6] + odd_texts[::3])


def test_a_model_whose_unknown_piece_is_a_control_token_is_refused(realdata, tmp_path):
    # transformers would give <s> for every character the vocabulary lacks
    write_pieces(tmp_path, realdata / "tokenizers" / "t5_cc_all.32000.100extra.sentencepiece.model", {})
    with pytest.raises(DataError, match=r"unk_id 2, which is its piece '<s>'"):
        load_tokenizer(tmp_path)


def test_an_exported_trained_tokenizer_gives_its_ids_in_transformers(texts, odd_texts, tmp_path):
    ours = train_tokenizer(texts[::2], TokenizerConfig(vocab_size=4096))
    write_hub_tokenizer(ours, tmp_path, chat_template="{{ messages }}")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.chat_template == "{{ messages }}"
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.end_id, ours.pad_id)
    assert len(theirs) == ours.vocab_size
    controls = ["".join(random.Random(i).choices([*ours.control_ids, "x", " ", "▁"], k=9)) for i in range(200)]
    for text in texts + odd_texts + controls:
        ids = theirs(text, add_special_tokens=False).input_ids
        assert ids == theirs(text).input_ids == ours.encode_rendered(text), text
        if not any(name in text for name in ours.control_ids):
            assert ids == ours.encode(text)
            assert theirs.decode(ids, skip_special_tokens=True) == text


def test_an_exported_foreign_model_gives_its_ids_in_transformers(realdata, texts, odd_texts, tmp_path):
    ours = load_tokenizer(realdata / "tokenizers" / "mistral-v3.32k.sentencepiece.model")
    write_hub_tokenizer(ours, tmp_path, chat_template=None)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in texts + odd_texts:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode_rendered(text), text


def test_the_tables_of_classes_are_those_of_transformers():
    names = tokenization_auto.TOKENIZER_MAPPING_NAMES
    theirs = {model_type: names[model_type].removesuffix("Fast") for model_type in MODEL_CLASSES}
    assert {key: AS_IS if name == "MistralCommonBackend" else name for key, name in theirs.items()} == MODEL_CLASSES
    assert not {"llama", "apertus", "bloom", "smollm3"} & set(names)
    assert set(MODEL_CLASSES) & tokenization_auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS == DISTRUSTED
    known = set(CLASSES) | {f"{name}Tokenizer" for name in OTHER_CLASSES.split()} | {AS_IS, "MistralCommonBackend"}
    found = {name.removesuffix("Fast") for name in names.values() if name is not None}
    assert {name for name in found if tokenization_auto.tokenizer_class_from_name(name) is not None} <= known


@pytest.mark.parametrize("kind", list(GOLDEN))
def test_the_golden_ids_of_the_core_suite_are_those_of_transformers(kind, tmp_path):
    write_folder(tmp_path, make_golden_folder(kind))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert {text: theirs(text, add_special_tokens=False).input_ids for text in GOLDEN[kind]} == GOLDEN[kind]


def test_what_transformers_wrote_is_read_alike(texts, odd_texts, tmp_path):
    write_folder(tmp_path, _make("qwen3", texts[::4]))
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "config.json").write_text('{"model_type": "qwen3"}')
    _check(tmp_path / "again", texts[::3] + odd_texts)
