"""A Hugging Face `config.json`, read key by key: a key nobody asked for, and not known to be inert, is an error."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")


class FamilyError(ValueError):
    """A config.json or model config that no family table covers. The message names the key or field."""


INERT = frozenset({
    # Who wrote it and with what.
    "_name_or_path", "_commit_hash", "architectures", "auto_map", "model_type", "transformers_version", "torch_dtype",
    "dtype", "name_or_path", "license", "chunk_size_feed_forward", "is_decoder", "is_encoder_decoder", "use_bfloat16",
    # How it was started and trained; nothing drops out in fine-tuning unless a recipe says so.
    "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop",
    "attn_pdrop", "embedding_dropout", "classifier_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "gradient_checkpointing", "masked_softmax_fusion", "slow_but_exact", "unk_index", "output_router_logits",
    "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef", "seq_length", "n_positions", "offset_alibi",
    "skip_bias_add", "skip_bias_add_qkv", "bias_dropout_fusion", "post_norm_init", "attention_softmax_in_fp32",
    "is_llama_config", "unsloth_fixed", "unsloth_version", "transformers.js_config", "_sliding_window_pattern",
    # What programs do around it.
    "use_cache", "cache_implementation", "return_dict", "output_attentions", "output_hidden_states",
    "tie_encoder_decoder",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "cls_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "return_dict_in_generate",
    "exponential_decay_length_penalty", "remove_invalid_values", "prefix", "task_specific_params", "problem_type",
    "finetuning_task", "id2label", "label2id", "tokenizer_class", "torchscript", "add_cross_attention",
    "cross_attention_hidden_size", "tf_legacy_loss", "use_flash_attn", "_attn_implementation",
    "_attn_implementation_autoset", "attn_implementation", "_flash_attn_2_enabled", "pretraining_tp",
    # How far it was trained to look; nothing in the arithmetic, unless a scaling uses it and then asks for it.
    "max_position_embeddings", "original_max_position_embeddings", "max_sequence_length", "model_max_length",
})  # fmt: skip
"""Keys that never change the function that is computed. Whatever a family's table asks for is not looked up here."""

LARGEST_SIZE = 2**31 - 1
LARGEST_DEPTH = 10_000
"""Beyond these a config.json is damaged, and lists of layers would fill the memory before anything noticed."""
_MISSING = object()


class ConfigFile:
    """The keys of a config.json, and which of them have been asked for."""

    def __init__(self, values: Mapping[str, Any], *, origin: str = "config.json"):
        self._values = values
        self._asked: set[str] = set()
        self.origin = origin

    @property
    def model_type(self) -> str:
        """The family's name. Raises FamilyError if there is none."""
        return self.take("model_type", str)

    def take(self, key: str, kind: type[Value], default: Any = _MISSING) -> Value:
        """The value of a key; null counts as not given. Raises FamilyError if it is missing or of another type."""
        self._asked.add(key)
        value: Any = self._values.get(key)
        if value is None:
            if default is _MISSING:
                raise FamilyError(f"{self.origin} lacks {key!r}; give the whole folder as it was published")
            return default
        if kind is float and is_number(value):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FamilyError(f"{self.origin}: {key} is {value!r}; it should be of type {kind.__name__}")
        if kind is float and not is_number(value):
            raise FamilyError(f"{self.origin}: {key} is {value!r}; it should be a finite number")
        return value

    def take_nullable(self, key: str, kind: type[Value], default: Value | None) -> Value | None:
        """Like `take`, where null has a meaning of its own: None. Only a key that is not there gets the default."""
        self._asked.add(key)
        return default if key not in self._values else None if self._values[key] is None else self.take(key, kind)

    def take_size(self, key: str, default: Any = _MISSING, *, largest: int = LARGEST_SIZE) -> int:
        """A whole number of at least one. Raises FamilyError like `take`, and for less or more than the largest."""
        value = self.take(key, int, default)
        if not 1 <= value <= largest:
            raise FamilyError(f"{self.origin}: {key} is {value!r}; it should be at least 1 and at most {largest}")
        return value

    def take_nullable_size(self, key: str, default: int | None) -> int | None:
        """Like `take_size`, where null has a meaning of its own: None. A key that is not there gets the default."""
        self._asked.add(key)
        return default if key not in self._values else None if self._values[key] is None else self.take_size(key)

    def take_depth(self, *keys: str) -> int:
        """The number of layers, under whichever of these keys is given: so many that none will miss more."""
        return self.take_alias(keys or ("num_hidden_layers",), largest=LARGEST_DEPTH)

    def take_alias(self, keys: Sequence[str], default: Any = _MISSING, *, largest: int = LARGEST_SIZE) -> int:
        """The size under whichever of these keys is given. Raises FamilyError if two of them differ."""
        found = {key: self.take_size(key, largest=largest) for key in keys if self.has(key)}
        self.ignore(*keys)
        if len(set(found.values())) > 1:
            raise FamilyError(f"{self.origin}: {found} are names of one thing, and differ; leave one of them")
        return next(iter(found.values())) if found else self.take_size(keys[0], default)

    def ignore(self, *keys: str) -> None:
        """Asks for keys that change nothing in this family, whatever they do in others."""
        self._asked.update(keys)

    def is_null(self, key: str) -> bool:
        """Whether the key is there and null."""
        return key in self._values and self._values[key] is None

    def has(self, key: str) -> bool:
        """Whether the key is given, and not null. Does not count as asking for it."""
        return self._values.get(key) is not None

    def expect(self, key: str, *allowed: Any) -> None:
        """Asks for a key of which only these values are computed here; not given (or null) is the first of them.

        Raises FamilyError naming the key and the values.
        """
        self._asked.add(key)
        value = self._values.get(key)
        if value is not None and value not in allowed:
            raise FamilyError(
                f"{self.origin}: {key} is {value!r}, which changes what is computed; polytune computes "
                f"{' or '.join(map(repr, allowed))} for {self._values.get('model_type')}"
            )

    def check_all_asked(self) -> None:
        """Raises FamilyError naming every key that was not asked for, is not inert and is not null."""
        unknown = sorted(
            key for key, value in self._values.items() if key not in self._asked | INERT and value is not None
        )
        if unknown:
            raise FamilyError(
                f"{self.origin}: {', '.join(f'{key} = {self._values[key]!r}'[:80] for key in unknown)}: not understood "
                f"for model_type {self._values.get('model_type')!r}, and may change what is computed. If a key is "
                "inert, take it out of config.json; otherwise this variant is not supported"
            )


def is_number(value: Any) -> bool:
    """Whether this is a number that a float can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_config_file(folder: Path) -> dict[str, Any]:
    """The values in a folder's config.json. Raises FamilyError if there is none, or it is no JSON object."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FamilyError(
            f"cannot read {path} ({error.strerror}); give a Hugging Face model folder, with config.json, safetensors "
            "and tokenizer"
        ) from None
    except ValueError as error:
        raise FamilyError(f"{path} is no JSON ({error}); copy it again") from None
    if not isinstance(values, dict):
        raise FamilyError(f"{path} holds a {type(values).__name__}; it should be a JSON object")
    return values
