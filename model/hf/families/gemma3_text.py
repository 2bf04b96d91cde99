"""`gemma3_text`: Gemma 2's form with norms of query and key heads, a base per layer type, and no cap on scores.

Every sixth layer sees everything; the base and scaling in the config are its, `rope_local_base_freq` is the others'.
Source: modeling_gemma3.py.
"""

from typing import Any

from model.config import ModelConfig
from model.hf.config_file import ConfigFile
from model.hf.families.gemma2 import read_gemma, write_gemma
from model.hf.family import Family
from model.hf.rope_keys import FULL, SLIDING, read_layer_ropes, write_layer_ropes, write_rope
from model.hf.shared import LLAMA_NAMES, QK_NORM_NAMES, SANDWICH_NAMES, combine, read_sliding, the_rope


def read(config: ConfigFile) -> ModelConfig:
    """The model of a gemma3_text config.json."""
    config.expect("attn_logit_softcapping", None)  # the reference has the key and does not use it
    pattern = config.take_size("sliding_window_pattern", 6)
    windows = read_sliding(config, lambda layer: (layer + 1) % pattern != 0, 4096)
    ropes = read_layer_ropes(
        config, longest=131_072, base=1_000_000.0, local_base=10_000.0, local_key="rope_local_base_freq"
    )
    return ModelConfig(
        **read_gemma(config),
        layers=combine(windows, [ropes[SLIDING if window else FULL] for window in windows]),
        qk_norm="head",
        final_softcap=config.take_nullable("final_logit_softcapping", float, None) or 0.0,
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    full, sliding = the_rope(cfg, among="full"), the_rope(cfg, among="sliding")
    if sliding is None or sliding.scaling is None:
        ropes = write_rope(full) | ({"rope_local_base_freq": sliding.base} if sliding else {})
    else:
        ropes = write_layer_ropes({name: rope for name, rope in ((FULL, full), (SLIDING, sliding)) if rope})
    return write_gemma(cfg) | ropes


FAMILY = Family("gemma3_text", "Gemma3ForCausalLM", read, write, LLAMA_NAMES | SANDWICH_NAMES | QK_NORM_NAMES)
