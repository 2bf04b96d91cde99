"""Optimizer state that waits in the host's memory between updates, at a copy of it each way in every step."""

from typing import Any

import jax

HOST = "pinned_host"


def to_host(state: Any) -> Any:
    """The state with its arrays in the host's memory, partitioned as they are; counts stay on the device."""
    return _move(state, jax.memory.Space.Host)


def to_device(state: Any) -> Any:
    """The state on the device, for an update."""
    return _move(state, jax.memory.Space.Device)


def on_host(abstract: Any) -> Any:
    """The abstract form of `to_host`: shapes do not tell by themselves which memory they are of."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not leaf.shape:
            return leaf
        sharding: Any = leaf.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.with_memory_kind(HOST))

    return jax.tree.map(place, abstract)


def is_on_host(leaf: Any) -> bool:
    """Whether an abstract array is one of the host's memory."""
    return getattr(leaf.sharding, "memory_kind", None) == HOST


def _move(state: Any, space: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if leaf.ndim else leaf, state)
