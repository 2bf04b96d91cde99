"""Parameters by path, such as `layers/0/attention/query/weight`, and patterns over them.

A pattern is matched against the whole path; `*` stands for anything, slashes too: `layers/*/bias`, `embedding/*`. A
stack of like layers is one array, named by its first layer: what a pattern says is said of the whole stack.
"""

import difflib
import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax

from model.transformer import Params

MOST_NAMED = 4
"""Paths shown in an error."""


def map_with_path(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """`function(path, leaf, ...)` of every leaf, its path as patterns know it."""
    return jax.tree_util.tree_map_with_path(lambda keys, *leaves: function(_path(keys), *leaves), tree, *others)


def list_paths(params: Params) -> list[str]:
    """The path of every parameter."""
    return [_path(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]


def match_paths(patterns: Sequence[str], paths: Sequence[str], *, field: str) -> frozenset[str]:
    """The paths that any of the patterns matches.

    Raises ValueError, naming the recipe's field, for a pattern that matches none.
    """
    matched: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(paths, pattern)
        if not found:
            near = difflib.get_close_matches(pattern, paths, n=MOST_NAMED, cutoff=0.3) or paths[:MOST_NAMED]
            raise ValueError(
                f"{field}: {pattern!r} matches none of the {len(paths)} parameters; near it: {', '.join(near)}. "
                "A stack of like layers has the name of its first layer"
            )
        matched.update(found)
    return frozenset(matched)


def split_frozen(params: Params, freeze: Sequence[str]) -> tuple[Params, Params]:
    """The parameters that are trained, and those that `train.freeze` keeps as they are: two trees that overlay.

    Raises ValueError for a pattern that matches nothing, and when nothing is left to train.
    """
    if not freeze:
        return params, {}
    paths = list_paths(params)
    frozen = match_paths(freeze, paths, field="train.freeze")
    if len(frozen) == len(paths):
        raise ValueError(f"train.freeze={list(freeze)} freezes all {len(paths)} parameters; leave some to be trained")
    return _take(params, lambda path: path not in frozen), _take(params, lambda path: path in frozen)


def overlay(params: Params, changed: Params) -> Params:
    """The parameters with those of `changed`, which may have only some of them, in their places."""
    return {
        key: value if key not in changed else overlay(value, changed[key]) if isinstance(value, dict) else changed[key]
        for key, value in params.items()
    }


def restrict(params: Params, like: Params) -> Params:
    """Those of the parameters that `like` has too."""
    paths = set(list_paths(like))
    return _take(params, lambda path: path in paths)


def _take(tree: Params, wants: Callable[[str], bool], prefix: str = "") -> Params:
    taken: Params = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if not isinstance(value, dict):
            if wants(path):
                taken[key] = value
        elif inside := _take(value, wants, f"{path}/"):
            taken[key] = inside
    return taken


def _path(keys: Sequence[Any]) -> str:
    return "/".join(str(key.key) for key in keys)
