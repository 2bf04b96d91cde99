"""Parameters as the matrices they are: a stack of layers holds one per layer, a mixture one per layer and expert.

Optimizers that look at whole matrices (Muon, Adafactor) see through this what they would see of a model whose every
matrix is an array of its own: no result depends on how layers are stacked or heads are laid out.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from train.paths import map_with_path


class Layout(NamedTuple):
    """How many of a parameter's dimensions, in order, count separate matrices, are their rows, and their columns."""

    separate: int
    rows: int
    columns: int
    """0: vectors, not matrices."""

    def sizes(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape with rows and columns as one dimension each; of vectors, all of them as one."""
        first, second = self.separate, self.separate + self.rows
        matrix = (math.prod(shape[first:second]), *((math.prod(shape[second:]),) if self.columns else ()))
        return (*shape[:first], *matrix)


_MATRICES = {
    "query/weight": (1, 2),
    "key/weight": (1, 2),
    "value/weight": (1, 2),
    "out/weight": (2, 1),
    "up/weight": (1, 1),
    "gate/weight": (1, 1),
    "down/weight": (1, 1),
    "embedding/weight": (1, 1),
    "head/weight": (1, 1),
    "experts/router": (1, 1),
    "experts/up": (1, 1),
    "experts/gate": (1, 1),
    "experts/down": (1, 1),
}
"""Dimensions of rows and of columns, by the last two names of a path. Heads are columns of one matrix, or its rows."""
_VECTORS = frozenset({"scale", "bias", "positive", "negative"})
_BY_EXPERT = frozenset({"experts/up", "experts/gate", "experts/down"})


def layout_of(path: str, ndim: int) -> Layout:
    """The layout of the parameter at this path, which has so many dimensions."""
    parts = path.split("/")
    separate = int(parts[0] == "layers")
    if parts[-1] in _VECTORS:
        return Layout(separate, ndim - separate, 0)
    name = "/".join(parts[-2:])
    layout = Layout(separate + (name in _BY_EXPERT), *_MATRICES[name])
    assert sum(layout) == ndim, f"{path} has {ndim} dimensions, its layout is {layout}"
    return layout


def is_matrix(path: str) -> bool:
    """Whether the parameter is a matrix, or a stack of some: not a scale, a bias or an activation's scalar."""
    return path.rpartition("/")[2] not in _VECTORS


def is_hidden_matrix(path: str) -> bool:
    """Whether it is a matrix between the embedding and the head."""
    return is_matrix(path) and path.startswith("layers/")


def each_matrix(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation applied to every matrix (or vector) of a tree of parameters by itself, its state too."""

    def init(params: Any) -> Any:
        return map_with_path(lambda path, leaf: _over(path, leaf, tx.init, leaf), params)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        leaves, structure = jax.tree.flatten(updates)

        def one(path: str, gradient: Any, old: Any, leaf: Any) -> tuple[jax.Array, Any]:
            new, changed = _over(path, leaf, tx.update, gradient, old, leaf)
            return new.reshape(leaf.shape), changed

        pairs = structure.flatten_up_to(map_with_path(one, updates, state, params))
        assert len(pairs) == len(leaves)
        return structure.unflatten(new for new, _ in pairs), structure.unflatten(changed for _, changed in pairs)

    return optax.GradientTransformation(init, update)


def _over(path: str, leaf: Any, function: Any, *inputs: Any) -> Any:
    """The function mapped over the parameter's separate matrices; arrays like the parameter are given as matrices."""
    leaf = jnp.asarray(leaf)
    layout = layout_of(path, leaf.ndim)
    shape = layout.sizes(leaf.shape)
    for _ in range(layout.separate):
        function = jax.vmap(function)
    out = function(*(x if isinstance(x, tuple) else jnp.reshape(x, shape) for x in inputs))
    sharding = jax.typeof(leaf).sharding
    if sharding.mesh.empty:
        return out
    # What belongs to experts that are spread over devices is spread too, even where it is a constant or a count.
    lead = sharding.spec[: layout.separate]
    return jax.tree.map(lambda x: jax.reshard(x, jax.P(*lead, *jax.typeof(x).sharding.spec[layout.separate :])), out)
