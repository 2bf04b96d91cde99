"""The mesh, and one table from logical axes of arrays to mesh axes. The only place where a mesh is built."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import msgspec
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

from model.config import ModelConfig


class MeshConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the mesh axes. Their product is the number of devices used."""

    fsdp: Annotated[int, msgspec.Meta(ge=-1)] = -1
    """Shards batch rows and, between uses, parameters. -1: every device the other axes leave."""
    expert: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Shards batch rows too, and the experts of a mixture."""
    tensor: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Shards heads, mlp width and vocabulary."""


MeshAxes = str | tuple[str, ...] | None


class AxisRules(msgspec.Struct, frozen=True, kw_only=True):
    """Logical axis -> mesh axes (None: replicated). Chosen by a run, never saved: a checkpoint knows no mesh."""

    batch: MeshAxes = ("fsdp", "expert")
    embed: MeshAxes = "fsdp"
    """Width of parameters; activations keep their width whole."""
    heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    experts: MeshAxes = "expert"

    def spec(self, *logical: str | None) -> PartitionSpec:
        """The partition of an array whose dimensions have these logical axes (None: whole)."""
        return PartitionSpec(*(getattr(self, name) if name else None for name in logical))


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with explicit axes over the devices, to be entered once, in a program's main: `with jax.set_mesh(...)`.

    Raises ValueError when the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices()) if devices is None else devices
    others = config.expert * config.tensor
    fsdp = config.fsdp if config.fsdp > 0 else len(devices) // others
    if config.fsdp == 0 or fsdp * others != len(devices):
        raise ValueError(
            f"mesh fsdp={config.fsdp} expert={config.expert} tensor={config.tensor} does not cover the {len(devices)} "
            f"devices present; make fsdp * expert * tensor = {len(devices)}, or set fsdp=-1 with an expert * tensor "
            f"that divides {len(devices)}"
        )
    sizes, names = (fsdp, config.expert, config.tensor), ("fsdp", "expert", "tensor")
    types = (AxisType.Explicit,) * len(names)
    try:
        return jax.make_mesh(sizes, names, axis_types=types, devices=devices)
    except NotImplementedError:  # expert=4 on 8 by 8 chips: an axis that is a part of one of the torus's dimensions
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(placed, names, axis_types=types)


def ways(axes: MeshAxes, mesh: Any) -> int:
    """How many parts an array dimension over these mesh axes has."""
    names = (axes,) if isinstance(axes, str) else axes or ()
    return math.prod(mesh.shape[name] for name in names)


def padding_for(vocab_size: int, axes: AxisRules, mesh: Any) -> int:
    """Rows to add to a vocabulary so that this mesh divides it, and meshes of 1, 2, 4 and 8 ways do too."""
    return -vocab_size % math.lcm(8, ways(axes.vocab, mesh))


def sharded_sizes(cfg: ModelConfig, axes: AxisRules) -> dict[str, tuple[int, MeshAxes]]:
    """The sizes of a model that a mesh must divide, as `check_divisible` takes them."""
    sizes: dict[str, tuple[int, MeshAxes]] = {
        "model.dim": (cfg.dim, axes.embed),
        "model.num_kv_heads": (cfg.num_kv_heads, axes.heads),
        "model.mlp_dim": (cfg.mlp_dim, axes.mlp),
    }
    if cfg.vocab_size:
        # Padding is decided when a model is imported; one that starts from a folder has what its first mesh needs.
        name = "model.vocab_size + model.vocab_padding (polytune import --vocab-multiple)"
        sizes[name] = (cfg.padded_vocab, axes.vocab)
    if cfg.experts is not None:
        sizes["model.experts.num_experts"] = (cfg.experts.num_experts, axes.experts)
        sizes["model.experts.dim"] = (cfg.experts.dim, axes.mlp)
    return sizes


def check_divisible(sizes: Mapping[str, tuple[int, MeshAxes]], mesh: Mesh) -> None:
    """Raises ValueError naming each size that its mesh axes do not divide, and the nearest sizes that work.

    `sizes` maps a name as the user knows it to (size, mesh axes it is sharded over).
    """
    for name, (size, axes) in sizes.items():
        parts = ways(axes, mesh)
        if size % parts:
            low = size // parts * parts
            options = f"{low} or {low + parts}" if low else f"{parts}"
            raise ValueError(f"{name}={size} is not divisible by mesh axis {axes}={parts}; use {options}")
