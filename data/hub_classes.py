"""What transformers builds for a tokenizer class, whatever `tokenizer.json` says besides vocabulary and merges.

transformers 5 reads `tokenizer.json` as it is only where the class leaves it alone (`TokenizersBackend`, once
`PreTrainedTokenizerFast`); classes of its own put their splitting and decoding in its place. Source: the classes
in `transformers/models/*/tokenization_*.py` and `AutoTokenizer.from_pretrained`, version 5.23.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from data.schema import DataError

AS_IS = "TokenizersBackend"
# The class of a model type where the folder names none, or another: it wins for some of them.
MODEL_CLASSES = {
    **dict.fromkeys(("mistral", "mixtral", "olmo2", "olmo3", "phi3", "stablelm", "granite", "glm", "glm4"), AS_IS),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next"), "Qwen2Tokenizer"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), "Qwen3_5Tokenizer"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text"), "GemmaTokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("olmo", "olmoe", "gpt_neox"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "phi", "starcoder2"), "GPT2Tokenizer"),
}
DISTRUSTED = frozenset({"phi3", "qwen2", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text"})
"""Model types whose folders name a wrong class so often that transformers goes by the model type."""
OTHER_CLASSES = (
    "Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot "
    "BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Clvp CodeGen CodeLlama ConvBert Cpm CpmAnt DPRContextEncoder "
    "DPRQuestionEncoder DPRReader Deberta DebertaV2 Dia DistilBert Electra Esm Esmc FNet FSMT "
    "FastSpeech2Conformer Flaubert Funnel GPTNeoXJapanese GPTSw3 Herbert LED Lasr LayoutLM LayoutLMv2 LayoutLMv3 "
    "LayoutXLM Longformer Luke Lxmert M2M100 MBart MBart50 MLuke MPNet Marian MarkupLM Mgpstr MistralCommon "
    "MobileBert Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Parakeet Pegasus Perceiver Phobert ProphetNet Rag Reformer "
    "RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter SqueezeBert T5 "
    "Tapas Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM XLM XLMRoberta XLNet"
)
"""Classes of transformers, less their ending `Tokenizer`, with splitting of their own that is not known here."""
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN3_5_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Vocabulary(NamedTuple):
    """A byte-pair vocabulary."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]


class TokenizerClass(NamedTuple):
    """A class of transformers that brings its own splitting."""

    build: Callable[[Vocabulary, Mapping[str, Any]], tokenizers.Tokenizer]
    """From vocabulary and declared options."""
    named_tokens: Mapping[str, str]
    """The special tokens it has where the folder names none."""
    repeats_special: bool = False
    """Whether it adds its special tokens once more when all is done, which resets their flags."""


def choose_class(declared: str | None, model_type: str | None, *, has_byte_level: bool, has_code: bool) -> str:
    """Returns the class whose splitting transformers uses: a key of `CLASSES`, or `AS_IS`.

    `declared` is the folder's `tokenizer_class`, `has_byte_level` whether its `tokenizer.json` splits into bytes,
    `has_code` whether it brings code. Raises DataError for a class of transformers that is not known here, and for
    one that is only code in the folder.
    """
    registered = MODEL_CLASSES.get(model_type or "")
    name = (declared or "").removesuffix("Fast")
    chosen = name or registered or AS_IS
    if name == "LlamaTokenizer" and has_byte_level and not has_code and model_type not in DISTRUSTED:
        chosen = AS_IS
    elif name and not has_code and registered not in (None, name):
        chosen = registered if registered == AS_IS or model_type in DISTRUSTED else name
    if chosen in CLASSES:
        return chosen
    if chosen.removesuffix("Tokenizer") in OTHER_CLASSES.split():
        raise DataError(
            f"tokenizer_class {declared}: transformers splits text for it in a way polytune does not know; known are "
            f"{', '.join(CLASSES)}, and any `tokenizer.json` as it is with tokenizer_class PreTrainedTokenizerFast"
        )
    if has_code and chosen != AS_IS and not chosen.startswith("PreTrained"):
        raise DataError(
            f"tokenizer_class {declared} is Python code in the folder (auto_map), which is never run; if its "
            "`tokenizer.json` gives the same ids, take auto_map out of tokenizer_config.json"
        )
    return AS_IS


def _build_llama(vocabulary: Vocabulary, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    adds_prefix = options.get("add_prefix_space") is not False
    scheme = ("always" if options.get("legacy", False) else "first") if adds_prefix else "never"
    backend = tokenizers.Tokenizer(BPE(vocabulary.ids, vocabulary.merges, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if adds_prefix else steps)
    return backend


def _build_gemma(vocabulary: Vocabulary, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    unknown = str(getattr(options["unk_token"], "content", options["unk_token"]))
    model = BPE(vocabulary.ids, vocabulary.merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _build_bytes(vocabulary: Vocabulary, *steps: pre_tokenizers.PreTokenizer, nfc: bool) -> tokenizers.Tokenizer:
    model = BPE(vocabulary.ids, vocabulary.merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False)
    backend = tokenizers.Tokenizer(model)
    if nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    backend.decoder = decoders.ByteLevel()
    return backend


def _build_qwen(vocabulary: Vocabulary, options: Mapping[str, Any], *, split: str) -> tokenizers.Tokenizer:
    space = bool(options.get("add_prefix_space"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
    return _build_bytes(vocabulary, pre_tokenizers.Split(Regex(split), "isolated"), byte_level, nfc=True)


def _build_qwen2(vocabulary: Vocabulary, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    return _build_qwen(vocabulary, options, split=QWEN2_SPLIT)


def _build_qwen3_5(vocabulary: Vocabulary, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    return _build_qwen(vocabulary, options, split=QWEN3_5_SPLIT)


def _build_cohere(vocabulary: Vocabulary, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=bool(options.get("add_prefix_space")))
    return _build_bytes(vocabulary, pre_tokenizers.Digits(individual_digits=True), byte_level, nfc=True)


def _build_neox(vocabulary: Vocabulary, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    space = bool(options.get("add_prefix_space"))
    return _build_bytes(vocabulary, pre_tokenizers.ByteLevel(add_prefix_space=space), nfc=True)


def _build_gpt2(vocabulary: Vocabulary, options: Mapping[str, Any]) -> tokenizers.Tokenizer:
    space = bool(options.get("add_prefix_space"))
    return _build_bytes(vocabulary, pre_tokenizers.ByteLevel(add_prefix_space=space), nfc=False)


_END = "<|endoftext|>"
_QWEN_TOKENS = {"unk_token": _END, "eos_token": _END, "pad_token": _END}
_LLAMA_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_GEMMA_TOKENS = {
    "unk_token": "<unk>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_COHERE_TOKENS = {
    "unk_token": "<UNK>",
    "bos_token": "<BOS_TOKEN>",
    "eos_token": "<|END_OF_TURN_TOKEN|>",
    "pad_token": "<PAD>",
    "cls_token": "<CLS>",
    "sep_token": "<SEP>",
    "mask_token": "<MASK_TOKEN>",
}
_GPT2_TOKENS = {"unk_token": _END, "bos_token": _END, "eos_token": _END}
CLASSES: Mapping[str, TokenizerClass] = {
    "LlamaTokenizer": TokenizerClass(_build_llama, _LLAMA_TOKENS),
    "GemmaTokenizer": TokenizerClass(_build_gemma, _GEMMA_TOKENS),
    "Qwen2Tokenizer": TokenizerClass(_build_qwen2, _QWEN_TOKENS, repeats_special=True),
    "Qwen3_5Tokenizer": TokenizerClass(_build_qwen3_5, _QWEN_TOKENS),
    "CohereTokenizer": TokenizerClass(_build_cohere, _COHERE_TOKENS, repeats_special=True),
    "GPTNeoXTokenizer": TokenizerClass(_build_neox, _GPT2_TOKENS | {"pad_token": "<|padding|>"}),
    "GPT2Tokenizer": TokenizerClass(_build_gpt2, _GPT2_TOKENS),
}
