"""`olmo3`: OLMo 2's form with three layers of windows to one without. Source: modeling_olmo3.py.

Rotary embeddings are scaled on the layers without a window only.
"""

from typing import Any

from model.config import ModelConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.families.olmo2 import OLMO_NAMES, read_olmo, write_olmo
from model.hf.family import Family
from model.hf.rope_keys import FULL, SLIDING, read_layer_ropes, write_layer_ropes, write_rope
from model.hf.shared import combine, read_sliding, the_rope, write_sliding

BASE = 500_000.0


def read(config: ConfigFile) -> ModelConfig:
    """The model of an olmo3 config.json."""
    windows = read_sliding(config, lambda layer: (layer + 1) % 4 != 0, 4096)
    ropes = read_layer_ropes(config, longest=2048, base=BASE, local_base=BASE, local_key=None)
    if config.take("rope_theta", float, BASE) != BASE and not config.has("rope_parameters"):
        raise FamilyError(
            f"{config.origin}: with a rope_theta other than {BASE:g}, versions of transformers disagree on the base of "
            "layers with a window; give rope_parameters, with a rope_theta for each layer type"
        )
    return ModelConfig(
        **read_olmo(config), layers=combine(windows, [ropes[SLIDING if window else FULL] for window in windows])
    )


def write(cfg: ModelConfig) -> dict[str, Any]:
    """The keys that `read` takes."""
    ropes = {FULL: the_rope(cfg, among="full"), SLIDING: the_rope(cfg, among="sliding")}
    given = {name: rope for name, rope in ropes.items() if rope is not None}
    sliding = given.get(SLIDING)
    if all(rope.base == BASE for rope in given.values()) and (sliding is None or sliding.scaling is None):
        written = write_rope(given.get(FULL))
    else:
        written = write_layer_ropes(given)
    return write_olmo(cfg) | write_sliding(cfg) | written


FAMILY = Family("olmo3", "Olmo3ForCausalLM", read, write, OLMO_NAMES)
