"""Floating-point operations that a training step needs, whatever is computed twice: the numerator of MFU.

A product and its sum are two. A position's product with a parameter costs 2 in the forward pass; the parameter's
gradient 2 more where it is trained; that of what it is multiplied with 2 more where something trained lies before it.
"""

from collections import Counter
from typing import Any, NamedTuple

import jax

from model.config import ModelConfig, group_layers
from model.transformer import Params


class Work(NamedTuple):
    """What rows ask of a model."""

    positions: int
    """Positions that run through the layers."""
    head_positions: int
    """Positions whose logits are made."""
    pairs_L: tuple[int, ...]
    """Pairs of a query and a key it sees, by layer."""


class StepCost(NamedTuple):
    """FLOPs that a training step needs, by what they are for."""

    parameters: dict[int, int]
    """How many parameters a position is multiplied with at so many FLOPs each, but for the head; ascending."""
    head: tuple[int, int]
    """The same of the head, for a position whose logits are made: FLOPs of each parameter, and how many."""
    pair_L: tuple[int, ...]
    """Of a pair of a query and a key it sees, by layer."""

    def product_flops(self, work: Work) -> int:
        """Of products with parameters: 6 N D where all are trained, N parameters and D positions.

        Source: arXiv:2001.08361, section 2.1.
        """
        flops, parameters = self.head
        body = sum(each * count for each, count in self.parameters.items())
        return body * work.positions + flops * parameters * work.head_positions

    def attention_flops(self, work: Work) -> int:
        """Of attention's scores and weighted sums."""
        return sum(each * pairs for each, pairs in zip(self.pair_L, work.pairs_L, strict=True))


def cost_step(cfg: ModelConfig, params: Params, trained: Params) -> StepCost:
    """The cost of a step that trains `trained`, a part of the parameters.

    A layer counts as one: where anything in it or below it is trained, gradients go through all of its products, and
    through its attention at 12 N H a pair (a score and a weighted sum of H for each of N heads, and two gradients of
    each); in the layers below there are none. A stack of layers is frozen or trained as a whole.
    """
    learnt = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
    first = min(_first_layer(cfg, path) for path, _ in jax.tree_util.tree_leaves_with_path(trained))
    stacks = {stack.name: stack.members for group in group_layers(cfg.kinds) for stack in group}
    parameters: Counter[int] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[0].key in ("embedding", "head"):
            continue
        places = stacks[path[1].key] if path[0].key == "layers" else (_first_layer(cfg, path),)
        own = 2 * (jax.tree_util.keystr(path) in learnt)
        for layer in places:
            parameters[2 + own + 2 * (first <= layer)] += _used(cfg, path, leaf) // len(places)
    head = "['embedding']" if cfg.tied_head else "['head']"
    head_flops = 2 + 2 * any(path.startswith(head) for path in learnt) + 2 * (first <= cfg.num_layers)
    heads = cfg.num_heads * cfg.head_dim
    return StepCost(
        parameters=dict(sorted(parameters.items())),
        head=(head_flops, cfg.padded_vocab * cfg.dim),
        pair_L=tuple((12 if first <= layer else 4) * heads for layer in range(cfg.num_layers)),
    )


def used_parameters(cfg: ModelConfig, params: Params) -> int:
    """How many parameters a position is multiplied with, the head included: of experts, those it is sent to.

    The embedding is looked up, and counts only where it is the head too.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return sum(_used(cfg, path, leaf) for path, leaf in leaves if path[0].key != "embedding" or cfg.tied_head)


def causal_pairs(length: int, window: int) -> int:
    """Pairs of a query and a key it sees in one causal segment, in a layer; 0: no window.

    Five positions: 15; five that see no more than two: 1 + 2 + 2 + 2 + 2 = 9.
    """
    seen = min(window, length) if window else length
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _used(cfg: ModelConfig, path: tuple[Any, ...], leaf: Any) -> int:
    """How much of a parameter a position is multiplied with: of each layer's experts, those it is sent to."""
    of_an_expert = any(key.key == "experts" for key in path) and path[-1].key != "router"
    if not of_an_expert or cfg.experts is None:
        return leaf.size
    return leaf.size * cfg.experts.per_token // cfg.experts.num_experts


def _first_layer(cfg: ModelConfig, path: tuple[Any, ...]) -> int:
    """The first layer that a parameter is in: -1 for what comes before them, then the final norm and the head."""
    outside = {"embedding": -1, "embedding_norm": -1, "final_norm": cfg.num_layers, "head": cfg.num_layers + 1}
    return int(path[1].key) if path[0].key == "layers" else outside[path[0].key]
