"""Every tiny config with a golden folder, and fresh random ones for the live suite (`draw_config`)."""

from tests.parity import variants_experts, variants_llama, variants_other
from tests.parity.sampler import draw_config
from tests.parity.variant import Variant

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in [*variants_llama.VARIANTS, *variants_other.VARIANTS, *variants_experts.VARIANTS]
}
MODEL_TYPES: tuple[str, ...] = tuple(dict.fromkeys(variant.config["model_type"] for variant in VARIANTS.values()))

__all__ = ["MODEL_TYPES", "VARIANTS", "Variant", "draw_config"]
