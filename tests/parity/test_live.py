"""Fresh random models of every family, computed by transformers and by us: logits, gradients, router losses.

`PARITY_SEEDS` says how many of each family (5), `PARITY_FIRST_SEED` which comes first (0).
"""

import functools
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("transformers")

from torch import nn
from toy import mesh_of

from model.config import ModelConfig
from model.hf.family import constant_tensors, hub_tensors, prefixed
from model.hf.hub import open_hub
from model.hf.registry import read_model
from model.hf.weights import read_tensors
from model.parallel import UNSHARDED
from model.rope import depends_on_length
from model.transformer import Params, apply_routed
from tests.parity import torch_reference as reference
from tests.parity.configs import MODEL_TYPES, draw_config
from train.loss import cross_entropy, load_balance_loss, router_z_loss

TOLERANCE = 1e-4
"""Of a difference: relative to the largest logit if that is above one, and to the largest gradient of a tensor."""
ROUNDING = 1e-6
"""Gradients that stay below this part of the largest tensor's are zero: that of a constant added to keys that are not
rotated, or of a router whose only choice is given the weight 1."""
ROUTER_MARGIN = 0.01
LENGTHS = (20, 40)
FIRST = int(os.environ.get("PARITY_FIRST_SEED", "0"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("PARITY_SEEDS", "5")))
CASES = [(model_type, seed) for model_type in MODEL_TYPES for seed in SEEDS]
WITH_EXPERTS = [case for case in CASES if "num_experts_per_tok" in draw_config(*case)]


class Values(NamedTuple):
    """What one side computes of a batch."""

    logits_BTV: np.ndarray
    gradients: reference.Gradients
    router: reference.RouterLosses | None


class Live(NamedTuple):
    """One random model, computed by both on the same batch."""

    ours: Values
    theirs: Values
    is_real_BT: np.ndarray


@functools.partial(jax.jit, static_argnames="cfg")
def compute(cfg: ModelConfig, params: Params, tokens_BT, segments_BT, weights_BT):
    """The weighted loss, its gradient, the logits and the router's sums."""
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32), tokens_BT.shape)

    def loss(params: Params):
        logits_BTV, sums = apply_routed(cfg, UNSHARDED, params, tokens_BT, segments_BT, positions_BT)
        losses_BT = cross_entropy(logits_BTV[:, :-1], tokens_BT[:, 1:])
        return jnp.sum(losses_BT * weights_BT[:, :-1]), (logits_BTV, sums)

    return jax.value_and_grad(loss, has_aux=True)(params)


@functools.cache
def live_of(model_type: str, seed: int) -> Live:
    config, rng = draw_config(model_type, seed), np.random.default_rng(seed)
    model = reference.build_model(config, seed)
    tokens_BT = draw_clear_tokens(model, rng)
    weights_BT = rng.choice([0.0, 0.25, 1.0], tokens_BT.shape).astype(np.float32)
    segments_BT = np.ones_like(tokens_BT)
    # Routers leave padding out of their losses. To the reference's rotation, though, it is part of the text.
    if has_router(model) and not changes_with_length(read_model(config)[1]):
        segments_BT[1, tokens_BT.shape[1] // 2 :] = 0
    weights_BT *= segments_BT
    theirs = compute_theirs(model, tokens_BT, segments_BT, weights_BT)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_folder(model, Path(folder), config=config)
        ours = compute_ours(Path(folder), tokens_BT, segments_BT, weights_BT)
    return Live(ours, theirs, segments_BT > 0)


def changes_with_length(cfg: ModelConfig) -> bool:
    return any(kind.rope is not None and depends_on_length(kind.rope) for kind in cfg.kinds)


def has_router(model: nn.Module) -> bool:
    return hasattr(model.config, "num_experts_per_tok")


def draw_clear_tokens(model: nn.Module, rng: np.random.Generator) -> np.ndarray:
    """[2, T] ids that no rounding sends to another expert."""
    length = int(rng.integers(*LENGTHS))
    for _ in range(20):
        try:
            return reference.draw_tokens(model, rng, 2, length, ROUTER_MARGIN).astype(np.int32)
        except LookupError:
            continue
    raise LookupError("every batch came near a tie of experts; use another seed")


def compute_ours(folder: Path, tokens_BT, segments_BT, weights_BT) -> Values:
    hub = open_hub(folder)
    with jax.set_mesh(mesh_of((1, 1))):
        params = hub.load(UNSHARDED, dtype=np.dtype("float32"))
        (loss, (logits_BTV, sums)), gradients = compute(hub.cfg, params, tokens_BT, segments_BT, weights_BT)
        router = None
        if hub.cfg.experts:
            router = reference.RouterLosses(float(load_balance_loss(sums)), float(router_z_loss(sums)))
    compute.clear_cache()  # a process may have 65,530 memory maps, of which each program takes hundreds
    dtypes = {each.name: np.dtype("float32") for each in hub_tensors(hub.family, hub.cfg)}
    constants = {each.name: np.dtype("float32") for each in constant_tensors(hub.family, hub.cfg)}
    by_name = {
        prefixed(hub.family, hub.facts.prefix, name): gradient
        for name, gradient in read_tensors(hub.family, hub.cfg, gradients, dtypes | constants)
        if name not in constants
    }
    return Values(np.asarray(logits_BTV), reference.Gradients(float(loss), by_name), router)


def compute_theirs(model: nn.Module, tokens_BT, segments_BT, weights_BT) -> Values:
    return Values(
        reference.reference_logits(model, tokens_BT),
        reference.reference_loss_gradients(model, tokens_BT, weights_BT),
        reference.reference_router_losses(model, tokens_BT, segments_BT) if has_router(model) else None,
    )


@pytest.mark.parametrize(("model_type", "seed"), CASES)
def test_logits_are_the_reference_s(model_type, seed):
    live = live_of(model_type, seed)
    ours, theirs = live.ours.logits_BTV[live.is_real_BT], live.theirs.logits_BTV[live.is_real_BT]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * max(1.0, np.abs(theirs).max()))


@pytest.mark.parametrize(("model_type", "seed"), CASES)
def test_the_loss_and_its_gradient_by_every_tensor_are_the_reference_s(model_type, seed):
    live = live_of(model_type, seed)
    ours, theirs = live.ours.gradients, live.theirs.gradients
    np.testing.assert_allclose(ours.loss, theirs.loss, rtol=TOLERANCE)
    assert set(ours.by_name) == set(theirs.by_name)
    largest = max(np.abs(gradient).max() for gradient in theirs.by_name.values())
    wrong = {}
    for name, wanted in theirs.by_name.items():
        given, size = ours.by_name[name], np.abs(wanted).max()
        difference = np.abs(given - wanted).max()
        if max(size, np.abs(given).max()) > ROUNDING * largest and not difference <= TOLERANCE * size:
            wrong[name] = f"{difference:.2g} of {size:.2g}"
    assert not wrong


@pytest.mark.parametrize(("model_type", "seed"), WITH_EXPERTS)
def test_router_losses_are_the_reference_s(model_type, seed):
    live = live_of(model_type, seed)
    np.testing.assert_allclose(live.ours.router, live.theirs.router, rtol=TOLERANCE)
