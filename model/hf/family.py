"""What a family table is: how a `config.json` and tensor names of Hugging Face become ours, and back.

A family says how to read its config, how to write it, and the name of the tensor behind each of our parameters.
Layouts follow from the parameter: Hugging Face stores a linear layer as (out, in), with heads flattened; we store
(in, out) with the heads as a dimension of their own.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np

from model.config import ModelConfig, group_layers
from model.hf.config_file import ConfigFile, FamilyError
from model.parallel import UNSHARDED
from model.transformer import abstract

Split = Callable[[np.ndarray, Sequence[tuple[int, ...]]], list[np.ndarray]]
Join = Callable[[Sequence[np.ndarray]], np.ndarray]


class Fused(NamedTuple):
    """One tensor that holds several of our parameters, e.g. queries, keys and values."""

    name: str
    leaves: tuple[str, ...]
    split: Split
    """The tensor and our shapes (of one layer) to our arrays, in the order of `leaves`."""
    join: Join
    """The inverse."""


class Constant(NamedTuple):
    """A tensor that holds no parameter: its value is part of the arithmetic, so another one is refused."""

    name: str
    value: float
    shape: tuple[int, ...]


class Family(NamedTuple):
    """One `model_type`."""

    model_type: str
    architecture: str
    """Written as `architectures` in config.json."""
    read: Callable[[ConfigFile], ModelConfig]
    """Raises FamilyError for a config that is not supported, ValueError for one that contradicts itself."""
    write: Callable[[ModelConfig], dict[str, Any]]
    """Keys of a config.json that `read` understands as this config; only asked for if reading it back gives it."""
    names: Mapping[str, str]
    """Our parameter (`attention.query.weight`, `head.weight`) -> tensor name; {layer} is filled in, and {expert} or
    {head}, which make one tensor for each entry of the parameter's first dimension."""
    fused: tuple[Fused, ...] = ()
    constants: tuple[Constant, ...] = ()
    optional_prefix: str = ""
    """Some folders put this before every name; `names` are without it."""
    ignored: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    """Patterns of tensors that follow from config.json: buffers that older versions saved."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place in our parameter tree: a leaf, and for layers which of its stack, for experts and heads which of
    those."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    """Of what is put there."""
    index: tuple[int, ...]
    """Into the leading dimensions of the leaf."""


class HubTensor(NamedTuple):
    """One tensor of a folder, the places of its parts, and the change of layout both ways."""

    name: str
    shape: tuple[int, ...]
    slots: tuple[Slot, ...]
    split: Callable[[np.ndarray], list[np.ndarray]]
    join: Join


def hub_tensors(family: Family, cfg: ModelConfig) -> list[HubTensor]:
    """Every tensor of a model of this family, in the order of its layers, without vocabulary padding.

    Raises FamilyError naming a parameter that the family has no tensor for.
    """
    unpadded = msgspec.structs.replace(cfg, vocab_padding=0)
    leaves = {
        ".".join(part.key for part in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_whole(unpadded))
    }
    places = {
        stack.members[i]: (stack.name, i)
        for group in group_layers(cfg.kinds)
        for stack in group
        for i in range(stack.count)
    }
    top = {name: shape for name, shape in leaves.items() if not name.startswith("layers.")}
    tensors = [tensor for name in ("embedding", "embedding_norm") for tensor in _top_tensors(family, top, name)]
    for layer in range(cfg.num_layers):
        stack, index = places[layer]
        prefix = f"layers.{stack}."
        own = {name.removeprefix(prefix): shape[1:] for name, shape in leaves.items() if name.startswith(prefix)}
        tensors += _layer_tensors(family, own, cfg=cfg, layer=layer, stack=stack, index=index)
    return tensors + [tensor for name in ("final_norm", "head") for tensor in _top_tensors(family, top, name)]


def constant_tensors(family: Family, cfg: ModelConfig) -> list[Constant]:
    """The family's constants of every layer, by their full names."""
    return [
        each._replace(name=each.name.format(layer=layer))
        for layer in range(cfg.num_layers)
        for each in family.constants
    ]


def prefixed(family: Family, prefix: str, name: str) -> str:
    """A tensor's name in a folder whose names have the prefix: a head of its own lies outside of what it stands for."""
    return name if name == family.names["head.weight"] else prefix + name


def is_ignored(family: Family, name: str) -> bool:
    """Whether a tensor of a folder follows from its config.json."""
    return any(re.fullmatch(pattern, name) for pattern in family.ignored)


def abstract_whole(cfg: ModelConfig) -> dict[str, Any]:
    """The shapes of the parameters, whatever mesh is in use."""
    mesh = jax.sharding.AbstractMesh((1,), ("unused",), axis_types=(jax.sharding.AxisType.Explicit,))
    # A mesh can be changed for one of another size only by way of none.
    none = jax.sharding.AbstractMesh((), ())
    with jax.sharding.use_abstract_mesh(none), jax.sharding.use_abstract_mesh(mesh):
        return abstract(cfg, UNSHARDED)


def split_rows(array: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Linear layers that share an input, one after the other along the output: (out 1 + out 2 + ..., in)."""
    sizes = [math.prod(shape[1:]) for shape in shapes]
    parts = np.split(array, np.cumsum(sizes)[:-1], axis=0)
    return [part.T.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def join_rows(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `split_rows`."""
    return np.concatenate([array.reshape(array.shape[0], -1).T for array in arrays], axis=0)


def _top_tensors(family: Family, top: Mapping[str, tuple[int, ...]], prefix: str) -> Iterator[HubTensor]:
    for leaf, shape in top.items():
        if leaf.partition(".")[0] == prefix:
            yield _plain_tensor(_name_of(family, leaf), leaf, shape, Slot(tuple(leaf.split(".")), shape, ()))


def _layer_tensors(
    family: Family, own: Mapping[str, tuple[int, ...]], *, cfg: ModelConfig, layer: int, stack: str, index: int
) -> Iterator[HubTensor]:
    def slot(leaf: str, shape: tuple[int, ...], *part: int) -> Slot:
        return Slot(("layers", stack, *leaf.split(".")), shape, (index, *part))

    fused = [each for each in family.fused if all(leaf in own for leaf in each.leaves)]
    covered = {leaf for each in fused for leaf in each.leaves}
    for each in fused:
        shapes = [own[leaf] for leaf in each.leaves]
        slots = tuple(slot(leaf, own[leaf]) for leaf in each.leaves)
        joined = each.join([np.broadcast_to(np.zeros((), np.int8), shape) for shape in shapes])
        yield HubTensor(each.name.format(layer=layer), joined.shape, slots, _bind_shapes(each.split, shapes), each.join)
    for leaf, shape in own.items():
        if leaf in covered:
            continue
        name = _name_of(family, leaf)
        if "{expert}" in name or "{head}" in name:
            for part in range(shape[0]):
                place = slot(leaf, shape[1:], part)
                yield _plain_tensor(name.format(layer=layer, expert=part, head=part), leaf, shape[1:], place)
        else:
            is_kept = cfg.qk_norm == "each_head" and leaf in ("attention.query_norm.scale", "attention.key_norm.scale")
            yield _plain_tensor(name.format(layer=layer), leaf, shape, slot(leaf, shape), is_kept=is_kept)


def _bind_shapes(split: Split, shapes: Sequence[tuple[int, ...]]) -> Callable[[np.ndarray], list[np.ndarray]]:
    return lambda array: split(array, shapes)


def _plain_tensor(name: str, leaf: str, shape: tuple[int, ...], slot: Slot, *, is_kept: bool = False) -> HubTensor:
    """A tensor that is one parameter: a linear layer turned round, anything else flattened unless it is kept."""
    if leaf == "embedding.weight" or is_kept:
        return HubTensor(name, shape, (slot,), lambda array: [array], lambda arrays: arrays[0])
    if not leaf.endswith(("weight", "router", "gate", "up", "down")):
        return HubTensor(
            name, (math.prod(shape),) if shape else (1,), (slot,),
            lambda array: [array.reshape(shape)], lambda arrays: arrays[0].reshape(-1),
        )  # fmt: skip
    split_at = len(shape) - 1 if leaf == "attention.out.weight" else 1
    inputs, outputs = math.prod(shape[:split_at]), math.prod(shape[split_at:])
    return HubTensor(
        name, (outputs, inputs), (slot,),
        lambda array: [array.T.reshape(shape)], lambda arrays: arrays[0].reshape(inputs, outputs).T,
    )  # fmt: skip


def _name_of(family: Family, leaf: str) -> str:
    if leaf not in family.names:
        raise FamilyError(f"{family.model_type} has no tensor for the parameter {leaf}; export as another family")
    return family.names[leaf]
