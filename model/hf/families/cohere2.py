"""`cohere2`: Command R7B and A: Cohere's form with windows. Source: modeling_cohere2.py.

Layers with a window have a rotary embedding, the others (every fourth) no notion of position.
"""

from typing import Any

from model.config import ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.families.cohere import read_cohere, write_cohere
from model.hf.family import Family
from model.hf.rope_keys import read_rope, write_rope
from model.hf.shared import LLAMA_NAMES, combine, read_sliding, the_rope, write_sliding


def read(config: ConfigFile) -> ModelConfig:
    """The model of a cohere2 config.json."""
    for key, computed in (
        ("position_embedding_type", "rope_gptj"),
        ("rotary_pct", 1.0),
        ("use_gated_activation", True),
        ("use_parallel_block", True),
        ("order_of_interleaved_layers", "local_attn_first"),
    ):
        config.expect(key, computed)
    config.expect("use_qk_norm", False)
    config.ignore("layer_switch", "use_embedding_sharing", "use_parallel_embedding")  # said by the keys below too
    pattern = config.take_size("sliding_window_pattern", 4)
    windows = read_sliding(config, lambda layer: (layer + 1) % pattern != 0, 4096)
    rope = read_rope(config, longest=8192, interleaved=True)
    return ModelConfig(**read_cohere(config), layers=combine(windows, [rope if each else None for each in windows]))


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    return write_cohere(cfg) | write_sliding(cfg) | write_rope(the_rope(cfg))


FAMILY = Family("cohere2", "Cohere2ForCausalLM", read, write, LLAMA_NAMES)
