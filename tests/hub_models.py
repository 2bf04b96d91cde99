"""A small random Llama in a Hugging Face folder, whole: config, sharded safetensors, tokenizer, chat template."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from model.hf.family import hub_tensors
from model.hf.registry import read_model
from model.hf.shards import FolderWriter, TensorSpec, plan_shards
from tests.hub_folders import TURNS, Folder, spell_bytes, write_folder

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 270,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 128,
    "eos_token_id": 266,
    "torch_dtype": "bfloat16",
}
END_OF_TEXT, END_OF_TURN = 264, 266


def write_hub_model(
    folder: Path,
    *,
    shard_bytes: int = 10**9,
    float32_norms: bool = False,
    template: str | None = CHATML,
    **changes: Any,
) -> Path:
    """A folder with bfloat16 tensors (norms in float32 if asked); `changes` are keys of config.json."""
    folder.mkdir(parents=True)
    tokens = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    config = tokens | ({"chat_template": template} if template else {})
    write_folder(folder, Folder(spell_bytes(special=(*TURNS, "<|pad|>")), config))
    values = CONFIG | changes
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [END_OF_TURN, END_OF_TEXT], "top_p": 0.9})
    )
    family, cfg = read_model(values)
    rng = np.random.default_rng(0)
    tensors = hub_tensors(family, cfg)

    def dtype(name: str) -> np.dtype:
        return np.dtype(np.float32 if float32_norms and "norm" in name else ml_dtypes.bfloat16)

    specs = [TensorSpec(tensor.name, tensor.shape, dtype(tensor.name)) for tensor in tensors]
    with FolderWriter(folder, plan_shards(specs, shard_bytes)) as writer:
        for spec in specs:
            around = 1.0 if "norm" in spec.name else 0.0
            writer.write(spec.name, (around + 0.3 * rng.normal(size=spec.shape)).astype(spec.dtype))
    return folder
