"""The mesh, and one table from logical axes of arrays to mesh axes. The only place where a mesh is built."""

from collections.abc import Sequence
from typing import Annotated, Any

import jax
import msgspec
from jax.sharding import AxisType, Mesh, PartitionSpec


class MeshConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the mesh axes. Their product is the number of devices used."""

    fsdp: Annotated[int, msgspec.Meta(ge=-1)] = -1
    """Shards batch rows and, between uses, parameters. -1: every device the other axes leave."""
    tensor: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Shards heads, mlp width and vocabulary."""


class AxisRules(msgspec.Struct, frozen=True, kw_only=True):
    """Logical axis -> mesh axis (None: replicated). Chosen by a run, never saved: a checkpoint knows no mesh."""

    batch: str | None = "fsdp"
    embed: str | None = "fsdp"
    """Width of parameters; activations keep their width whole."""
    heads: str | None = "tensor"
    mlp: str | None = "tensor"
    vocab: str | None = "tensor"

    def spec(self, *logical: str | None) -> PartitionSpec:
        """The partition of an array whose dimensions have these logical axes (None: whole)."""
        return PartitionSpec(*(getattr(self, name) if name else None for name in logical))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with explicit axes over the devices, to be entered once, in a program's main: `with jax.set_mesh(...)`.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else devices
    fsdp = config.fsdp if config.fsdp > 0 else len(devices) // config.tensor
    if config.fsdp == 0 or fsdp * config.tensor != len(devices):
        raise ValueError(
            f"mesh fsdp={config.fsdp} tensor={config.tensor} does not cover the {len(devices)} devices present; "
            f"make fsdp * tensor = {len(devices)}, or set fsdp=-1 with a tensor that divides {len(devices)}"
        )
    return jax.make_mesh(
        (fsdp, config.tensor), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2, devices=devices
    )


def check_divisible(sizes: dict[str, tuple[int, str | None]], mesh: Mesh) -> None:
    """Raises ValueError naming each size that its mesh axis does not divide, and the nearest sizes that work.

    `sizes` maps a name as the user knows it to (size, mesh axis it is sharded over).
    """
    for name, (size, axis) in sizes.items():
        ways = mesh.shape[axis] if axis else 1
        if size % ways:
            low = size // ways * ways
            options = f"{low} or {low + ways}" if low else f"{ways}"
            raise ValueError(f"{name}={size} is not divisible by mesh axis {axis}={ways}; use {options}")
