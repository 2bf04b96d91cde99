"""Sizes of mesh axes from the name of a preset, the model and the batch: so that one recipe runs on many machines."""

import math
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from model.config import ModelConfig
from model.parallel import MESH_AXES, AxisRules, MeshConfig, axis_names, sharded_sizes

POWERS = (2, 4, 8)
"""Sizes that presets choose from: up to what one host's devices, or the chips around one, can exchange quickly."""


class Sizes(NamedTuple):
    """What a preset goes by."""

    cfg: ModelConfig
    rows: int
    """Of a microbatch."""
    row_length: int
    devices: int
    """Left to the preset, after the sizes that the recipe gives."""
    given_ways: int
    """How many parts of the rows the sizes that the recipe gives make."""
    axes: AxisRules


def resolve_mesh(
    config: MeshConfig,
    cfg: ModelConfig,
    *,
    devices: int,
    rows: int,
    row_length: int,
    axes: AxisRules = AxisRules(),  # noqa: B008
) -> MeshConfig:
    """The config with its preset's axes sized for so many devices, this model, and microbatches of so many rows.

    `fsdp`: all devices on `fsdp`. `fsdp_tp`: a `tensor` axis as short as lets the rest divide the rows, at least 2,
    that divides what `axes` shards over it: heads, widths and, where it is known, the vocabulary. `long`: the same of
    `sequence`. `moe`: an `expert` axis as long as divides experts and devices, at most 8. Sizes that the config gives
    stand, and `fsdp` has the rest; where it gives `fsdp`, the preset's axis has the rest. Raises ValueError, with the
    numbers, when no size works.
    """
    if config.preset is None:
        return config
    axis = AXIS_OF[config.preset]
    if axis is None or getattr(config, axis) is not None:
        return msgspec.structs.replace(config, preset=None)
    given = {name: config.size(name) for name in MESH_AXES if config.size(name) > 1}
    left, over = divmod(devices, math.prod(given.values()))
    if over or not left:
        shown = " ".join(f"mesh.{name}={size}" for name, size in given.items())
        raise ValueError(
            f"mesh.preset={config.preset} with {shown}: their product {math.prod(given.values())} does not divide the "
            f"{devices} devices present; give sizes whose product does, or leave them to the preset"
        )
    if config.size("fsdp") > 0:
        return msgspec.structs.replace(config, preset=None, **{axis: left})
    given_ways = given.get("data", 1) * given.get("expert", 1)
    sizes = Sizes(cfg, rows, row_length, left, given_ways, axes)
    return msgspec.structs.replace(config, preset=None, **{axis: CHOOSE[config.preset](sizes)})


def _tensor(sizes: Sizes) -> int:
    sharded = sharded_sizes(sizes.cfg, sizes.axes)
    divided = {name: size for name, (size, axes) in sharded.items() if "tensor" in axis_names(axes)}
    return _shortest("fsdp_tp", "tensor", divided, sizes)


def _sequence(sizes: Sizes) -> int:
    return _shortest("long", "sequence", {"data.packing.row_length": sizes.row_length}, sizes)


def _shortest(preset: str, axis: str, divided: dict[str, int], sizes: Sizes) -> int:
    fits = [n for n in POWERS if not any(size % n for size in (sizes.devices, *divided.values()))]
    for n in fits:
        if sizes.rows % (sizes.given_ways * sizes.devices // n) == 0:
            return n
    named = ", ".join(f"{name}={size}" for name, size in divided.items())
    if not fits:  # one of the sizes is odd, as all that are even can be halved
        odd = [f"{name} be {size - 1} or {size + 1}" for name, size in divided.items() if size % 2]
        mended = f"let {', and '.join(odd)}; or " if odd and sizes.devices % 2 == 0 else ""
        raise ValueError(
            f"mesh.preset={preset} needs 2, 4 or 8 devices on the {axis} axis, which must divide the "
            f"{sizes.devices} devices it may use and {named}; {mended}use mesh.preset=fsdp, or give mesh.{axis} "
            "yourself"
        )
    ways = sizes.given_ways * sizes.devices // fits[-1]
    low = sizes.rows // ways * ways
    raise ValueError(
        f"mesh.preset={preset} on {sizes.devices} devices ({named}) can have {fits[-1]} on the {axis} axis at most; "
        f"the other {ways} ways do not divide {sizes.rows} rows per microbatch (train.batch_rows / "
        f"train.microbatches); use {f'{low} or ' if low else ''}{low + ways} rows"
    )


def _expert(sizes: Sizes) -> int:
    experts = sizes.cfg.experts
    if experts is None:
        raise ValueError("mesh.preset=moe: no layer of the model has experts; use mesh.preset=fsdp")
    fits = [n for n in POWERS if sizes.devices % n == 0 and experts.num_experts % n == 0]
    if not fits:
        raise ValueError(
            f"mesh.preset=moe needs 2, 4 or 8 devices on the expert axis, which must divide the {sizes.devices} "
            f"devices it may use and model.experts.num_experts={experts.num_experts}; use mesh.preset=fsdp"
        )
    return fits[-1]


AXIS_OF: dict[str, str | None] = {"fsdp": None, "fsdp_tp": "tensor", "long": "sequence", "moe": "expert"}
CHOOSE: dict[str, Callable[[Sizes], int]] = {"fsdp_tp": _tensor, "long": _sequence, "moe": _expert}
