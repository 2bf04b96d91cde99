"""Gradient shares: the numbers of the definition, the same from both heads, and at no cost to the gradient itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import AXES, LANGUAGES, TOLERANCE, TOY, assert_close_trees, lay_out, make_examples, most_trained, pack_pairs

from model.config import ComputeConfig, ModelConfig
from train.chunked_loss import chunked_losses
from train.config import LossConfig
from train.step import StepSpec, loss_sums, mean_gradient

BATCH = lay_out(pack_pairs(make_examples(16, seed=3)))
SPEC = StepSpec(
    model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES), most_trained=most_trained(BATCH),
    num_sources=3, gradient_share=True,
)  # fmt: skip
HEADS = {
    "chunks": LossConfig(chunk=16),
    "full": LossConfig(head="full"),
    "full, smoothed": LossConfig(head="full", label_smoothing=0.1, z_loss_weight=1e-2),
    "chunks, smoothed": LossConfig(chunk=16, label_smoothing=0.1, z_loss_weight=1e-2),
}


def test_norms_are_those_of_the_formula(one_device):
    """dO/dx of cross-entropy is weight (p - target) W; a position without weight pulls at nothing."""
    rng = np.random.default_rng(0)
    cfg = ModelConfig(vocab_size=8, num_layers=1, dim=4, num_heads=1, num_kv_heads=1, head_dim=4, mlp_dim=4)
    x_BKD, head_VD = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(8, 4)).astype(np.float32)
    targets_BK, weight_BK = rng.integers(0, 8, (2, 3)).astype(np.int32), np.float32([[1, 0, 0.5], [1, 1, 0]])
    head = head_VD if cfg.tied_head else head_VD.T
    losses = chunked_losses(LossConfig(), cfg, *map(jnp.asarray, (x_BKD, head, targets_BK, weight_BK)), has_norms=True)
    exponential_BKV = np.exp(x_BKD @ head_VD.T)
    pull_BKV = exponential_BKV / exponential_BKV.sum(-1, keepdims=True) - np.eye(8)[targets_BK]
    wanted_BK = np.linalg.norm(weight_BK[..., None] * (pull_BKV @ head_VD), axis=-1)
    np.testing.assert_allclose(losses.gradient_BK, wanted_BK, **TOLERANCE)
    assert (np.asarray(losses.gradient_BK)[weight_BK == 0] == 0).all()


@pytest.fixture(scope="module")
def sums_of(toy_params):
    """Gradient and sums of the batch with each head."""
    from toy import mesh_of

    with jax.set_mesh(mesh_of((1, 1))):
        return {
            name: jax.jit(mean_gradient, static_argnums=0)(dataclasses.replace(SPEC, loss=loss), toy_params, BATCH)
            for name, loss in HEADS.items()
        }


@pytest.mark.parametrize("objective", ["", ", smoothed"])
def test_both_heads_give_the_same_shares(sums_of, objective):
    (_, chunks), (_, full) = sums_of["chunks" + objective], sums_of["full" + objective]
    np.testing.assert_allclose(chunks.gradient_R, full.gradient_R, **TOLERANCE)
    np.testing.assert_allclose(chunks.by_source.gradient_X, full.by_source.gradient_X, **TOLERANCE)
    assert (np.asarray(chunks.gradient_R)[1:] > 0).all()


def test_languages_and_sources_are_two_cuts_of_the_same_sums(sums_of):
    """Languages 1 and 3 are source 2 here, language 2 is source 1."""
    _, sums = sums_of["chunks"]
    for by_language_R, by_source_X in (
        (sums.loss_R, sums.by_source.loss_X),
        (sums.weight_R, sums.by_source.weight_X),
        (sums.gradient_R, sums.by_source.gradient_X),
    ):
        np.testing.assert_allclose(by_source_X, [0, by_language_R[2], by_language_R[1] + by_language_R[3]], **TOLERANCE)


def test_watching_the_gradient_does_not_move_it(toy_params, one_device):
    compute = jax.jit(mean_gradient, static_argnums=0)
    watched, _ = compute(SPEC, toy_params, BATCH)
    bare, sums = compute(dataclasses.replace(SPEC, gradient_share=False, num_sources=0), toy_params, BATCH)
    assert_close_trees(watched, bare)
    assert sums.gradient_R is None and sums.by_source is None


def test_a_norm_has_no_gradient_of_its_own(toy_params, one_device):
    def total(params):
        sums = loss_sums(SPEC, params, BATCH)
        assert sums.gradient_R is not None and sums.objective is not None
        return sums.objective + 5 * sums.gradient_R.sum()

    given = jax.jit(jax.grad(total))(toy_params)
    gradient, sums = jax.jit(mean_gradient, static_argnums=0)(SPEC, toy_params, BATCH)
    scale = 1 / sums.weight_R.sum()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a * scale, b, **TOLERANCE), given, gradient)
