"""What a step may feel and what not: masked positions, padding, the order of rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import (
    AXES,
    LANGUAGES,
    OPTIM,
    TOLERANCE,
    TOY,
    assert_equal_trees,
    copy_to_host,
    lay_out,
    make_examples,
    most_trained,
    pack_pairs,
    place_state,
)

from model import transformer
from model.config import ComputeConfig
from train.config import LossConfig
from train.loss import trained_positions
from train.optim import make_optimizer
from train.step import StepSpec, loss_sums, mean_gradient, split_rows, train_step

BATCH = lay_out(pack_pairs(make_examples(8)))
SPEC = StepSpec(
    model=TOY,
    axes=AXES,
    compute=ComputeConfig(),
    num_languages=len(LANGUAGES),
    most_trained=most_trained(BATCH),
)


@pytest.fixture(scope="module")
def gradient_of():
    """The jitted gradient, compiled once."""
    return jax.jit(functools.partial(mean_gradient, SPEC))


def test_gradient_at_masked_positions_is_exactly_zero(toy_params, one_device, monkeypatch):
    """Through the whole loss: logits become logits + nudge, and d loss / d nudge is taken everywhere.

    Where nothing is trained it is zero to the bit; elsewhere it is weight x (softmax - target).
    """
    apply, params = transformer.apply_routed, jax.tree.map(jnp.asarray, toy_params)
    make_logits = transformer.make_logits

    def nudged_logits(*arguments, nudge_BTV, most):
        at_BK = trained_positions(jnp.asarray(BATCH.loss_weight_BT), most)
        return make_logits(*arguments) + jnp.take_along_axis(nudge_BTV, at_BK[..., None], axis=1)

    @functools.partial(jax.jit, static_argnums=1)
    @jax.grad
    def gradient(nudge_BTV, most):
        nudged = functools.partial(nudged_logits, nudge_BTV=nudge_BTV, most=most)
        monkeypatch.setattr(transformer, "make_logits", nudged)
        spec = StepSpec(
            model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES), most_trained=most,
            loss=LossConfig(head="full"),
        )  # fmt: skip
        return jnp.sum(loss_sums(spec, params, jax.tree.map(jnp.asarray, BATCH)).loss_R)

    at_all_BT = jnp.broadcast_to(jnp.arange(BATCH.tokens_BT.shape[1])[None], BATCH.tokens_BT.shape)
    fields = (jnp.asarray(x_BT) for x_BT in (BATCH.tokens_BT, BATCH.segments_BT, BATCH.positions_BT))
    logits_BTV, _ = jax.jit(apply, static_argnums=(0, 1))(TOY, AXES, params, *fields, at_BK=at_all_BT)
    share_BTV = np.asarray(jax.nn.softmax(logits_BTV, axis=-1))
    wanted_BTV = (share_BTV - np.eye(TOY.vocab_size)[BATCH.targets_BT]) * BATCH.loss_weight_BT[..., None]
    is_trained_BT = BATCH.loss_weight_BT > 0
    for most in (SPEC.most_trained, BATCH.tokens_BT.shape[1]):
        gradient_BTV = np.asarray(gradient(jnp.zeros(share_BTV.shape), most))
        assert np.all(gradient_BTV[~is_trained_BT] == 0.0)
        assert np.all(np.any(gradient_BTV[is_trained_BT] != 0.0, axis=-1))
        np.testing.assert_allclose(gradient_BTV, wanted_BTV, **TOLERANCE)


def test_targets_where_nothing_is_trained_change_no_bit(gradient_of, toy_params, one_device):
    """Also languages, roles and sources there: a masked position belongs to no sum."""
    rng = np.random.default_rng(0)
    masked_BT = BATCH.loss_weight_BT == 0

    def scramble(field_BT, high):
        return np.where(masked_BT, rng.integers(0, high, field_BT.shape), field_BT).astype(np.int32)

    scrambled = BATCH._replace(
        targets_BT=scramble(BATCH.targets_BT, TOY.vocab_size),
        language_BT=scramble(BATCH.language_BT, len(LANGUAGES)),
        role_BT=scramble(BATCH.role_BT, 6),
        source_BT=scramble(BATCH.source_BT, 3),
    )
    assert np.any(scrambled.targets_BT != BATCH.targets_BT)
    assert_equal_trees(gradient_of(toy_params, scrambled), gradient_of(toy_params, BATCH))


def test_tokens_of_padding_change_no_bit(gradient_of, toy_params, one_device):
    tokens_BT = np.where(BATCH.segments_BT == 0, 17, BATCH.tokens_BT).astype(np.int32)
    given, sums = gradient_of(toy_params, BATCH._replace(tokens_BT=tokens_BT))
    wanted, wanted_sums = gradient_of(toy_params, BATCH)
    assert_equal_trees(sums, wanted_sums)
    assert_equal_trees(given["layers"], wanted["layers"])


def test_targets_where_something_is_trained_do_change_the_loss(gradient_of, toy_params, one_device):
    targets_BT = np.where(BATCH.loss_weight_BT > 0, (BATCH.targets_BT + 1) % TOY.vocab_size, BATCH.targets_BT)
    changed = gradient_of(toy_params, BATCH._replace(targets_BT=targets_BT))[1]
    assert np.all(np.asarray(changed.loss_R[1:]) != np.asarray(gradient_of(toy_params, BATCH)[1].loss_R[1:]))


def test_twice_the_weights_is_the_same_mean_gradient(gradient_of, toy_params, one_device):
    """The one division: sums double, and to the bit the gradient does not."""
    doubled, sums = gradient_of(toy_params, BATCH._replace(loss_weight_BT=BATCH.loss_weight_BT * 2))
    gradient, wanted = gradient_of(toy_params, BATCH)
    assert_equal_trees(doubled, gradient)
    assert_equal_trees(sums, jax.tree.map(lambda leaf: leaf * 2, wanted))


def test_the_gradient_is_the_slope_of_the_loss(gradient_of, toy_params, one_device):
    """A finite difference along a random direction, so that no hand-written gradient can hide."""
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), toy_params)

    def mean_loss(size):
        moved = jax.tree.map(lambda leaf, d: leaf + np.float32(size) * d, toy_params, direction)
        sums = gradient_of(moved, BATCH)[1]
        return float(sums.loss_R.sum()) / float(sums.weight_R.sum())

    slope = (mean_loss(1e-3) - mean_loss(-1e-3)) / 2e-3
    products = jax.tree.map(lambda g, d: float(np.vdot(g, d)), gradient_of(toy_params, BATCH)[0], direction)
    assert slope == pytest.approx(sum(jax.tree.leaves(products)), rel=2e-3)


def test_microbatches_are_dealt_out_in_turn():
    rows_BT = jnp.arange(8)[:, None] * jnp.ones((1, 2), jnp.int32)
    np.testing.assert_array_equal(split_rows(rows_BT, 4)[:, :, 0], [[0, 4], [1, 5], [2, 6], [3, 7]])


def test_the_step_counts_reports_and_keeps_float32(toy_params, one_device):
    tx = make_optimizer(OPTIM, 10)
    state = place_state(toy_params, tx)
    new_state, metrics = jax.jit(functools.partial(train_step, SPEC, tx))(state, BATCH)
    gradient, sums = jax.jit(functools.partial(mean_gradient, SPEC))(toy_params, BATCH)
    assert int(new_state.step) == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(new_state.params)} == {np.dtype("float32")}
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(copy_to_host(gradient))))
    np.testing.assert_allclose(metrics.grad_norm, norm, **TOLERANCE)
    np.testing.assert_allclose(metrics.sums.loss_R, sums.loss_R, **TOLERANCE)
    assert metrics.sums.loss_R[0] == 0


def test_bfloat16_compute_updates_float32_parameters(toy_params, one_device):
    spec = StepSpec(
        model=TOY, axes=AXES, compute=ComputeConfig(dtype="bfloat16"), num_languages=len(LANGUAGES),
        most_trained=SPEC.most_trained, microbatches=2,
    )  # fmt: skip
    gradient, sums = jax.jit(functools.partial(mean_gradient, spec))(toy_params, BATCH)
    assert {leaf.dtype for leaf in jax.tree.leaves((gradient, sums))} == {np.dtype("float32")}
    exact = jax.jit(functools.partial(mean_gradient, SPEC))(toy_params, BATCH)[1]
    np.testing.assert_allclose(sums.loss_R, exact.loss_R, rtol=0.01)
