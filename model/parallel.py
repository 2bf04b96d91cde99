"""The mesh, and one table from logical axes of arrays to mesh axes. The only place where a mesh is built."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import msgspec
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

from model.config import ModelConfig

Size = Annotated[int, msgspec.Meta(ge=1)]


MESH_AXES = ("data", "fsdp", "expert", "sequence", "tensor")
"""Of every mesh, outermost first: neighbours on the last talk most."""


class MeshConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sizes of the mesh axes. Their product is the number of devices used."""

    preset: Literal["fsdp", "fsdp_tp", "long", "moe"] | None = None
    """Which axes share the devices, with sizes from model and batch (`model.presets`); sizes given here stand. None:
    `fsdp` has what the others leave."""
    data: Size | None = None
    """Shards batch rows; parameters are whole along it: replicas of a group of devices that `fsdp` shards over."""
    fsdp: Annotated[int, msgspec.Meta(ge=-1)] | None = None
    """Shards batch rows and, between uses, parameters. None or -1: every device the other axes leave."""
    expert: Size | None = None
    """Shards batch rows too, and the experts of a mixture."""
    sequence: Size | None = None
    """Shards the positions of each row, for rows too long for one device; keys and values are gathered along it."""
    tensor: Size | None = None
    """Shards heads, mlp width and vocabulary."""

    def size(self, name: str) -> int:
        """Of an axis; -1: what the others leave."""
        given = getattr(self, name)
        return given if given is not None else -1 if name == "fsdp" else 1


MeshAxes = str | tuple[str, ...] | None


def axis_names(axes: MeshAxes) -> tuple[str, ...]:
    """The mesh axes as a tuple."""
    return (axes,) if isinstance(axes, str) else axes or ()


class AxisRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logical axis -> mesh axes (None: replicated). Chosen by a run, never saved: a checkpoint knows no mesh."""

    batch: MeshAxes = ("data", "fsdp", "expert")
    length: MeshAxes = "sequence"
    """Positions of a row, in activations; masks and keys have them whole as well."""
    embed: MeshAxes = "fsdp"
    """Width of parameters; activations keep their width whole."""
    heads: MeshAxes = "tensor"
    mlp: MeshAxes = "tensor"
    vocab: MeshAxes = "tensor"
    experts: MeshAxes = "expert"

    def __post_init__(self):
        for name in self.__struct_fields__:
            unknown = [axis for axis in axis_names(getattr(self, name)) if axis not in MESH_AXES]
            if unknown:
                raise ValueError(f"axes.{name} names mesh axis {unknown[0]!r}; the axes are {', '.join(MESH_AXES)}")
        for group in TOGETHER:
            taken: dict[str, str] = {}
            for name in group:
                for axis in axis_names(getattr(self, name)):
                    if axis in taken:
                        where = f"{taken[axis]} twice" if taken[axis] == name else f"{taken[axis]} and {name}"
                        raise ValueError(
                            f"axes: mesh axis {axis} would shard {where}, dimensions of the same arrays; give one of "
                            "them another axis, or null"
                        )
                    taken[axis] = name

    def spec(self, *logical: str | None) -> PartitionSpec:
        """The partition of an array whose dimensions have these logical axes (None: whole)."""
        return PartitionSpec(*(getattr(self, name) if name else None for name in logical))


TOGETHER = (
    ("embed", "heads"), ("embed", "mlp", "experts"), ("embed", "vocab"),
    ("batch", "length", "heads"), ("batch", "length", "mlp"), ("batch", "length", "vocab"),
)  # fmt: skip
"""Logical axes that are dimensions of one array: of a parameter, of an activation."""
UNSHARDED = AxisRules(batch=None, length=None, embed=None, heads=None, mlp=None, vocab=None, experts=None)
"""Everything whole on every device; the only rules that need no mesh."""
ANSWERING = AxisRules(batch=("data", "fsdp", "expert", "sequence"), length=None)
"""For generation and evaluation, whose rows are short or grow by one position at a time: more rows at once instead."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with explicit axes over the devices, to be entered once, in a program's main: `with jax.set_mesh(...)`.

    A preset has been resolved by now. Raises ValueError when the sizes do not multiply to the number of devices.
    """
    assert config.preset is None, "model.presets.resolve_mesh has given its sizes"
    devices = list(jax.devices()) if devices is None else devices
    sizes = {name: config.size(name) for name in MESH_AXES}
    others = math.prod(size for name, size in sizes.items() if name != "fsdp")
    if sizes["fsdp"] == -1:
        sizes["fsdp"] = len(devices) // others
    if math.prod(sizes.values()) != len(devices) or sizes["fsdp"] == 0:
        asked = " ".join(f"{name}={config.size(name)}" for name in MESH_AXES)
        raise ValueError(
            f"mesh {asked} does not cover the {len(devices)} devices present; make their product {len(devices)}, or "
            f"set fsdp=-1 with a product of the others that divides {len(devices)}"
        )
    types = (AxisType.Explicit,) * len(sizes)
    try:
        return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:  # expert=4 on 8 by 8 chips: an axis that is a part of one of the torus's dimensions
        placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
        return Mesh(placed, MESH_AXES, axis_types=types)


def describe_axes(shape: Mapping[str, int]) -> str:
    """The axes of a mesh that shard anything: {data: 1, fsdp: 4, tensor: 2} is `fsdp=4 tensor=2`."""
    return " ".join(f"{name}={size}" for name, size in shape.items() if size > 1) or "of one device"


def ways(axes: MeshAxes, mesh: Any) -> int:
    """How many parts an array dimension over these mesh axes has."""
    return math.prod(mesh.shape[name] for name in axis_names(axes))


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
        name = "model.vocab_size (or tokenizer.vocab_size) + model.vocab_padding (polytune import --vocab-multiple)"
        sizes[name] = (cfg.padded_vocab, axes.vocab)
    if cfg.experts is not None:
        sizes["model.experts.num_experts"] = (cfg.experts.num_experts, axes.experts)
        sizes["model.experts.dim"] = (cfg.experts.dim, axes.mlp)
    return sizes


def check_all_shard(axes: AxisRules, mesh: Mesh) -> None:
    """Raises ValueError for a mesh axis that shards nothing by these rules: its devices would all do the same."""
    used = {name for field in axes.__struct_fields__ for name in axis_names(getattr(axes, field))}
    for name, size in mesh.shape.items():
        if size > 1 and name not in used:
            raise ValueError(
                f"mesh axis {name}={size} shards nothing by the recipe's axes: {size} devices would do the same work; "
                f"use mesh.{name}=1, or name {name} in axes"
            )


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
