"""Rotary embeddings in a config.json: the keys of transformers 4 and those of 5, read and written.

4 has `rope_theta`, `rope_scaling` and `partial_rotary_factor`; 5 has `rope_parameters`, which holds all three: one for
all layers, or one per layer type. What wins where both are given, and what a missing number means, is as in
`modeling_rope_utils.py` and `configuration_utils.py` of transformers 5.
"""

import math
from collections.abc import Mapping
from typing import Any

from model.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeConfig,
    RopeScaling,
    YarnScaling,
)
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.rope_fields import RopeFields

FULL, SLIDING = "full_attention", "sliding_attention"


def read_rope(
    config: ConfigFile,
    *,
    longest: int,
    base: float = 10_000.0,
    fraction: float | None = None,
    interleaved: bool = False,
    original: int | None = None,
    yarn_is_long: bool = False,
) -> RopeConfig:
    """The rotary embedding that all layers share. The numbers are the family's, where the config gives none.

    `longest` is max_position_embeddings, `original` original_max_position_embeddings if the family has one of its own;
    `fraction` None: the family always turns all dimensions; `yarn_is_long`: it calls the long scaling yarn too. Raises
    FamilyError for a scaling, or a key of one, that is not computed here.
    """
    fields = RopeFields(_given(config), config, _take_longest(config, longest), yarn_is_long)
    base = fields.number("rope_theta", config.take("rope_theta", float, base))
    turned = fields.number("partial_rotary_factor", config.take("partial_rotary_factor", float, fraction or 1.0))
    if fraction is None and turned != 1.0:
        raise FamilyError(
            f"{config.origin}: partial_rotary_factor is {turned}, which changes what is computed; polytune computes "
            f"1.0 for {config.model_type}"
        )
    scaling = _read_scaling(fields, config.take("original_max_position_embeddings", int, original or 0))
    fields.check_all_asked()
    return RopeConfig(base=base, fraction=turned, interleaved=interleaved, scaling=scaling)


def read_layer_ropes(
    config: ConfigFile, *, longest: int, base: float, local_base: float, local_key: str | None
) -> dict[str, RopeConfig]:
    """The rotary embedding of each layer type; `rope_scaling` and `rope_theta` are those of full attention.

    `local_key` is where transformers 4 keeps the base of sliding layers. Raises FamilyError like `read_rope`.
    """
    given = config.take("rope_parameters", dict, {})
    unknown = sorted(map(str, set(given) - {FULL, SLIDING}))
    if unknown:
        raise FamilyError(
            f"{config.origin}: rope_parameters has {', '.join(unknown)}; {config.model_type} has one set of them for "
            f"{FULL} and one for {SLIDING}"
        )
    scaling = config.take("rope_scaling", dict, {})
    longest = _take_longest(config, longest)
    bases = {
        FULL: config.take("rope_theta", float, base),
        SLIDING: config.take(local_key, float, local_base) if local_key else local_base,
    }
    ropes = {}
    for layer_type, own_base in bases.items():
        values = given.get(layer_type) or {}
        if not isinstance(values, dict):
            raise FamilyError(
                f"{config.origin}: rope_parameters gives {values!r} for {layer_type}; it should be a dict"
            )
        fields = RopeFields(values | scaling if layer_type == FULL else values, config, longest)
        rope_base, rope_scaling = fields.number("rope_theta", own_base), _read_scaling(fields, 0)
        if isinstance(rope_scaling, YarnScaling) and not rope_scaling.whole_dimensions:
            raise FamilyError(
                f"{config.origin}: rope_parameters says truncate: false for {layer_type}, where the reference does not "
                "look for it; take it out if the weights were trained without it"
            )
        fields.check_all_asked()
        ropes[layer_type] = RopeConfig(base=rope_base, scaling=rope_scaling)
    return ropes


def write_rope(rope: RopeConfig | None) -> dict[str, Any]:
    """The keys of transformers 4, which 5 reads too; none for no rotary embedding."""
    if rope is None:
        return {}
    written: dict[str, Any] = {"rope_theta": rope.base}
    if rope.fraction != 1.0:
        written["partial_rotary_factor"] = rope.fraction
    if rope.scaling is not None:
        written["rope_scaling"] = _write_scaling(rope.scaling)
        if isinstance(rope.scaling, DynamicScaling):
            written["max_position_embeddings"] = rope.scaling.original_length
    return written


def write_layer_ropes(ropes: Mapping[str, RopeConfig]) -> dict[str, Any]:
    """The keys of transformers 5, for rotary embeddings that 4 has no keys for."""
    return {"rope_parameters": {name: _write_parameters(rope) for name, rope in ropes.items()}}


def _write_parameters(rope: RopeConfig) -> dict[str, Any]:
    scaling = {"rope_type": "default"} if rope.scaling is None else _write_scaling(rope.scaling)
    return scaling | {"rope_theta": rope.base}


def _given(config: ConfigFile) -> Mapping[str, Any]:
    old, new = config.take("rope_scaling", dict, {}), config.take("rope_parameters", dict, {})
    if old and new and old != new:
        raise FamilyError(f"{config.origin}: rope_scaling and rope_parameters differ; leave the one that is meant")
    return old or new


def _take_longest(config: ConfigFile, default: int) -> int:
    return config.take_size("max_position_embeddings", default)


def _read_scaling(fields: RopeFields, outside: int) -> RopeScaling | None:
    """`outside` is the original length given beside the scaling, which wins over the one inside; 0: none."""
    match fields.kind:
        case "default":
            fields.number("factor", 1.0)  # given by some, used by none
            fields.number("original_max_position_embeddings", 1.0)
            return None
        case "linear":
            return LinearScaling(factor=fields.number("factor"))
        case "dynamic":
            fields.number("original_max_position_embeddings", 1.0)  # the reference looks at the longest only
            return DynamicScaling(factor=fields.number("factor"), original_length=fields.longest)
        case "llama3":
            return Llama3Scaling(
                factor=fields.number("factor"),
                low_frequency_factor=fields.number("low_freq_factor"),
                high_frequency_factor=fields.number("high_freq_factor"),
                original_length=_original_length(fields, outside),
            )
        case "yarn":
            return _read_yarn(fields, _original_length(fields, outside))
        case "longrope" | "su":
            return _read_long(fields, _original_length(fields, outside))
    raise fields.refuse()


def _original_length(fields: RopeFields, outside: int) -> int:
    return fields.length("original_max_position_embeddings", fields.longest, outside=outside)


def _read_yarn(fields: RopeFields, original: int) -> YarnScaling:
    factor = fields.number("factor", fields.longest / original)
    all_dims, one = fields.number("mscale_all_dim", 0.0), fields.number("mscale", 0.0)
    inferred = _magnitude(factor, one) / _magnitude(factor, all_dims) if one and all_dims else _magnitude(factor, 1.0)
    return YarnScaling(
        factor=factor,
        original_length=original,
        fast_turns=fields.number("beta_fast", 32.0) or 32.0,
        slow_turns=fields.number("beta_slow", 1.0) or 1.0,
        attention_factor=fields.number("attention_factor", inferred),
        whole_dimensions=fields.flag("truncate", True),
    )


def _magnitude(factor: float, weight: float) -> float:
    """Source: arXiv:2309.00071, eq. 22, 0.1 ln(s) + 1."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _read_long(fields: RopeFields, original: int) -> LongScaling:
    factor = fields.number("factor", fields.longest / original)
    return LongScaling(
        short_factors=fields.numbers("short_factor"),
        long_factors=fields.numbers("long_factor"),
        original_length=original,
        attention_factor=fields.number("attention_factor", long_attention_factor(factor, original)),
    )


def long_attention_factor(factor: float, original: int) -> float:
    """What cosines and sines are multiplied by where a config does not say. Source: arXiv:2402.13753."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    match scaling:
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case DynamicScaling():
            return {"rope_type": "dynamic", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_frequency_factor,
                "high_freq_factor": scaling.high_frequency_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_length,
                "beta_fast": scaling.fast_turns,
                "beta_slow": scaling.slow_turns,
                "attention_factor": scaling.attention_factor,
                "truncate": scaling.whole_dimensions,
            }
        case LongScaling():
            return {
                "rope_type": "longrope",
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
                "original_max_position_embeddings": scaling.original_length,
                "attention_factor": scaling.attention_factor,
            }
