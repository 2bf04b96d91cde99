import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import TOLERANCE

from train.config import LossConfig, TrainConfig
from train.loss import TokenLosses, cross_entropy, full_losses, sums_by_group, trained_positions


def test_cross_entropy_is_minus_the_log_of_the_softmax(one_device):
    logits_BKV = np.random.default_rng(0).normal(0, 3, (2, 5, 11)).astype(np.float32)
    targets_BK = np.random.default_rng(1).integers(0, 11, (2, 5))
    share_BKV = np.exp(logits_BKV.astype(np.float64))
    share_BKV /= share_BKV.sum(axis=-1, keepdims=True)
    wanted_BK = -np.log(np.take_along_axis(share_BKV, targets_BK[..., None], axis=-1)[..., 0])
    given_BK = cross_entropy(jnp.asarray(logits_BKV), jnp.asarray(targets_BK))
    np.testing.assert_allclose(given_BK, wanted_BK, **TOLERANCE)


def test_cross_entropy_of_known_numbers(one_device):
    """A uniform guess among four costs ln 4; a certain one costs nothing, or all of its margin when wrong."""
    logits = jnp.array([[[0.0, 0, 0, 0], [1e4, 0, 0, 0], [1e4, 0, 0, 0]]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([[2, 0, 1]])), [[np.log(4), 0, 1e4]], **TOLERANCE)


def test_cross_entropy_of_bfloat16_logits_is_float32(one_device):
    loss = cross_entropy(jnp.zeros((1, 1, 1000), jnp.bfloat16), jnp.array([[7]]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [[np.log(1000)]], **TOLERANCE)


@pytest.mark.parametrize(("z", "smoothing"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.3), (0.05, 0.1)])
def test_what_is_minimised_is_what_the_papers_write(z, smoothing, one_device):
    """Cross-entropy against (1 - e) x target + e x uniform over the real ids, and z times the squared log denominator.

    The loss beside it stays the bare cross-entropy. Two of eleven ids are padding, which takes no part.
    """
    rng = np.random.default_rng(0)
    logits_BKV = rng.normal(0, 3, (2, 5, 11)).astype(np.float32)
    logits_BKV[..., 9:] = np.finfo(np.float32).min
    targets_BK, weight_BK = rng.integers(0, 9, (2, 5)), np.float32([[1, 0, 0.5, 1, 0], [0, 2, 0, 0, 0.25]])
    real_BKV = logits_BKV[..., :9].astype(np.float64)
    log_z_BK = np.log(np.exp(real_BKV).sum(axis=-1))
    log_share_BKV = real_BKV - log_z_BK[..., None]
    wanted_BKV = (1 - smoothing) * np.eye(9)[targets_BK] + smoothing / 9
    minimised_BK = -(wanted_BKV * log_share_BKV).sum(axis=-1) + z * log_z_BK**2
    losses = full_losses(
        LossConfig(z_loss_weight=z, label_smoothing=smoothing), jnp.asarray(logits_BKV), jnp.asarray(targets_BK),
        jnp.asarray(weight_BK), vocab_size=9,
    )  # fmt: skip
    np.testing.assert_allclose(losses.objective, (minimised_BK * weight_BK).sum(), **TOLERANCE)
    bare_BK = -np.take_along_axis(log_share_BKV, targets_BK[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(losses.loss_BK, bare_BK, **TOLERANCE)


def test_a_recipe_says_the_head_and_what_is_minimised_under_train():
    recipe = {"steps": 2, "batch_rows": 8, "loss": {"head": "full", "chunk": 64, "z_loss_weight": 1e-4}}
    assert msgspec.convert(recipe, TrainConfig).loss == LossConfig(head="full", chunk=64, z_loss_weight=1e-4)
    assert TrainConfig(steps=2, batch_rows=8).loss == LossConfig(head="chunked") and LossConfig().is_bare
    for wrong in ({"head": "half"}, {"chunk": 0}, {"z_loss_weight": -1.0}, {"label_smoothing": 1.0}):
        with pytest.raises(msgspec.ValidationError, match=rf"\$\.loss\.{next(iter(wrong))}"):
            msgspec.convert({**recipe, "loss": wrong}, TrainConfig)


def test_sums_by_group_of_known_numbers(one_device):
    losses = TokenLosses(
        jnp.zeros(()), jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 100.0]]), jnp.array([[0.5, 0.25, 0.0], [2.0, 1.0, 0.0]])
    )
    sums = sums_by_group(losses, jnp.array([[1.0, 0.5, 0.0], [1.0, 1.0, 0.0]]), jnp.array([[1, 1, 1], [3, 1, 0]]), 4)
    np.testing.assert_array_equal(sums.loss_X, [0, 1 + 1 + 5, 0, 4])
    np.testing.assert_array_equal(sums.weight_X, [0, 2.5, 0, 1])
    np.testing.assert_array_equal(sums.gradient_X, [0, 0.5 + 0.25 + 1, 0, 2])


@pytest.mark.parametrize(
    ("weights", "most", "positions"),
    [
        ([0, 1, 0, 0.5], 3, [1, 3, 0]),
        ([0, 1, 0, 0.5], 2, [1, 3]),
        ([1, 1, 1, 1], 4, [0, 1, 2, 3]),
        ([0, 0, 0, 0], 2, [0, 1]),
        ([0, 0, 0, 0.25], 4, [3, 0, 1, 2]),
    ],
)
def test_trained_positions_come_first_and_in_order(weights, most, positions):
    np.testing.assert_array_equal(trained_positions(jnp.array([weights], jnp.float32), most), [positions])


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=8, max_size=8), st.integers(0, 8))
def test_no_position_is_chosen_twice_and_no_weight_is_lost(weights, extra):
    most = min(8, sum(w > 0 for w in weights) + extra)
    chosen = np.asarray(trained_positions(jnp.array([weights], jnp.float32), most))[0].tolist()
    assert len(set(chosen)) == len(chosen) == most
    assert sum(weights[t] for t in chosen) == sum(weights)
