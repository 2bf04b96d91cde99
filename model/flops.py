"""Floating-point operations that a model needs, whatever is computed twice: the numerator of MFU.

A product and its sum are two. The backward pass of a product is two products, so a step is 3 times a forward pass.
"""

from typing import NamedTuple

import jax

from model.config import ModelConfig
from model.transformer import Params


class Work(NamedTuple):
    """What rows ask of a model."""

    positions: int
    """Positions that run through the layers."""
    head_positions: int
    """Positions whose logits are made."""
    pairs: int
    """Pairs of a query and a key it sees, summed over layers."""


def product_flops(cfg: ModelConfig, used: int, work: Work) -> int:
    """6 N D of a training step: D positions, N = `used`, the parameters a position is multiplied with.

    The head's parameters count at the positions whose logits are made only. Source: arXiv:2001.08361, section 2.1.
    """
    head = cfg.padded_vocab * cfg.dim
    return 6 * ((used - head) * work.positions + head * work.head_positions)


def attention_flops(cfg: ModelConfig, work: Work) -> int:
    """12 N H a pair of a training step: a score and a weighted sum of H each, for each of N heads."""
    return 12 * cfg.num_heads * cfg.head_dim * work.pairs


def used_parameters(cfg: ModelConfig, params: Params) -> int:
    """How many parameters a position is multiplied with, the head included: of experts, those it is sent to.

    The embedding is looked up, and counts only where it is the head too.
    """
    total = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = [getattr(step, "key", "") for step in path]
        if names[0] == "embedding" and not cfg.tied_head:
            continue
        of_an_expert = "experts" in names and names[-1] != "router"
        share = cfg.experts.per_token / cfg.experts.num_experts if of_an_expert and cfg.experts else 1.0
        total += round(leaf.size * share)
    return total


def causal_pairs(length: int, window: int) -> int:
    """Pairs of a query and a key it sees in one causal segment, in a layer; 0: no window.

    Five positions: 15; five that see no more than two: 1 + 2 + 2 + 2 + 2 = 9.
    """
    seen = min(window, length) if window else length
    return seen * (seen + 1) // 2 + (length - seen) * seen
