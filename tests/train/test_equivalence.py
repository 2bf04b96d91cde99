"""One update is the same number however it is computed: mesh, microbatches, packing, remat, unrolling, K."""

import functools

import jax
import numpy as np
import pytest
from toy import (
    AXES,
    LANGUAGES,
    MESHES,
    OPTIM,
    TOLERANCE,
    TOY,
    assert_close_trees,
    copy_to_host,
    lay_out,
    make_examples,
    mesh_of,
    most_trained,
    pack_pairs,
    place_state,
)  # fmt: skip

from model.config import ComputeConfig
from train.loop import put_batch
from train.optim import make_optimizer
from train.step import StepSpec, loss_sums, train_step

EXAMPLES = make_examples(64)
PACKED = lay_out(pack_pairs(EXAMPLES))
SEPARATE = lay_out([[example] for example in EXAMPLES])
STEPS = 3


def make_spec(batch, *, microbatches=1, extra_trained=0, **compute):
    return StepSpec(
        model=TOY, axes=AXES, compute=ComputeConfig(**compute), num_languages=len(LANGUAGES),
        most_trained=most_trained(batch) + extra_trained, microbatches=microbatches,
    )  # fmt: skip


def run_steps(params, batch, *, mesh=(1, 1), **how):
    """Metrics and parameters of three updates on the same batch: enough for a wrong moment to show."""
    tx = make_optimizer(OPTIM, 10)
    with jax.set_mesh(mesh_of(mesh)):
        state = place_state(params, tx)
        placed = put_batch(batch, AXES.spec("batch", None))
        update = jax.jit(functools.partial(train_step, make_spec(batch, **how), tx), donate_argnums=0)
        metrics = []
        for _ in range(STEPS):
            state, step_metrics = update(state, placed)
            metrics.append(copy_to_host(step_metrics))
        return metrics, copy_to_host(state.params)


@pytest.fixture(scope="module")
def plain(toy_params):
    """One device, one microbatch, packed, nothing recomputed."""
    return run_steps(toy_params, PACKED)


def test_the_rows_train_unequal_numbers_of_tokens():
    """A mean of microbatches' means would be another number only because of this."""
    counts = (PACKED.loss_weight_BT > 0).sum(axis=1)
    assert len(set(counts.tolist())) > 5
    assert len({PACKED.loss_weight_BT[m::4].sum() for m in range(4)}) == 4


def test_the_loss_falls_and_every_parameter_moves(plain, toy_params):
    metrics, params = plain
    losses = [step.sums.loss_R.sum() / step.sums.weight_R.sum() for step in metrics]
    assert losses[0] > losses[1] > losses[2]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), params, toy_params)))


@pytest.mark.parametrize(("mesh", "microbatches"), [(mesh, m) for mesh in MESHES for m in (1, 4)][1:], ids=str)
def test_mesh_and_microbatches_change_no_result(plain, toy_params, mesh, microbatches):
    assert_close_trees(run_steps(toy_params, PACKED, mesh=mesh, microbatches=microbatches), plain)


def test_packed_rows_train_like_one_example_a_row(plain, toy_params):
    assert_close_trees(run_steps(toy_params, SEPARATE, microbatches=4), plain)


@pytest.mark.parametrize(
    "how",
    [
        {"remat": "block"},
        {"scan_unroll": TOY.num_layers, "extra_trained": 1},
        {
            "remat": "block",
            "scan_unroll": TOY.num_layers,
            "extra_trained": 16,
            "microbatches": 4,
            "mesh": (2, 4),
        },
    ],
    ids=lambda how: "-".join(how),
)
def test_memory_and_speed_settings_change_no_result(plain, toy_params, how):
    assert_close_trees(run_steps(toy_params, PACKED, **how), plain)


def test_packed_loss_is_the_sum_of_separate_losses(plain, toy_params, one_device):
    """Without any division: sums over each example alone, added up in NumPy."""
    sum_row = jax.jit(functools.partial(loss_sums, make_spec(SEPARATE)))
    loss_R, weight_R = np.zeros(len(LANGUAGES)), np.zeros(len(LANGUAGES))
    for row in range(len(EXAMPLES)):
        sums = sum_row(toy_params, jax.tree.map(lambda x_BT, row=row: x_BT[row : row + 1], SEPARATE))
        loss_R += np.asarray(sums.loss_R)
        weight_R += np.asarray(sums.weight_R)
    first = plain[0][0].sums
    np.testing.assert_allclose(first.loss_R, loss_R, **TOLERANCE)
    np.testing.assert_array_equal(first.weight_R, weight_R)
    wanted = [sum(sum(e.weights[1:]) for e in EXAMPLES if e.language == r) for r in range(len(LANGUAGES))]
    np.testing.assert_array_equal(first.weight_R, wanted)
