"""One update is the same number however it is computed: mesh, microbatches, packing, remat, unrolling, K, head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import (
    AXES,
    LANGUAGES,
    LONG_MESHES,
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

from model.config import ComputeConfig, DynamicScaling, LayerKind, RopeConfig
from model.parallel import MESH_AXES, MeshConfig, describe_axes
from model.transformer import init
from train.config import LossConfig
from train.hosts import put_batch
from train.offload import to_host
from train.optim import make_optimizer
from train.step import StepSpec, loss_sums, mean_gradient, train_step

EXAMPLES = make_examples(64)
PACKED = lay_out(pack_pairs(EXAMPLES))
SEPARATE = lay_out([[example] for example in EXAMPLES])
STEPS = 3


CHUNK = 16
"""Positions; a device of the meshes has 32 to 512, so that the head has several chunks everywhere."""


def make_spec(batch, *, microbatches=1, extra_trained=0, loss=LossConfig(chunk=CHUNK), **compute):  # noqa: B008
    return StepSpec(
        model=TOY, axes=AXES, compute=ComputeConfig(**compute), num_languages=len(LANGUAGES),
        most_trained=most_trained(batch) + extra_trained, microbatches=microbatches, loss=loss,
        num_sources=3, gradient_share=True,
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


@pytest.mark.parametrize(
    "mesh", LONG_MESHES, ids=lambda mesh: describe_axes({name: mesh.size(name) for name in MESH_AXES})
)
def test_replicas_and_split_rows_change_no_result(plain, toy_params, mesh):
    """Split rows: examples cross from device to device, and trained positions are brought to other ones."""
    extra = -most_trained(PACKED) % 8  # K is divided by every sequence axis
    assert_close_trees(run_steps(toy_params, PACKED, mesh=mesh, microbatches=2, extra_trained=extra), plain)


@pytest.mark.parametrize("head", ["full", "chunked"])
def test_split_rows_keep_windows_soft_caps_and_distances(head):
    """What looks at positions: a window shorter than a device's part of the row, ALiBi, RoPE that knows lengths."""
    scaling = DynamicScaling(factor=2.0, original_length=4)
    kinds = (LayerKind(window=3), LayerKind(rope=RopeConfig(scaling=scaling)))
    model = msgspec.structs.replace(TOY, layers=kinds, attention_softcap=5.0, alibi=True, qk_norm="head")

    def gradient(mesh):
        spec = dataclasses.replace(
            make_spec(PACKED, extra_trained=-most_trained(PACKED) % 8, loss=LossConfig(head=head)), model=model
        )
        with jax.set_mesh(mesh_of(mesh)):
            params = jax.jit(init, static_argnums=(0, 1))(model, AXES, jax.random.key(0))
            batch = put_batch(PACKED, AXES.spec("batch", None))
            return copy_to_host(jax.jit(functools.partial(mean_gradient, spec))(params, batch))

    assert_close_trees(gradient(MeshConfig(fsdp=2, sequence=4)), gradient((1, 1)))


def test_packed_rows_train_like_one_example_a_row(plain, toy_params):
    assert_close_trees(run_steps(toy_params, SEPARATE, microbatches=4), plain)


@pytest.mark.parametrize(
    "how",
    [
        {"remat": "block"},
        {"remat": "products"},
        {"remat": "attention", "mesh": (4, 2)},
        {"remat": "offload", "mesh": (4, 2)},
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


@pytest.mark.parametrize("loss", [LossConfig(head="full"), LossConfig()], ids=["full", "one-chunk"])
def test_the_head_changes_no_result(plain, toy_params, loss):
    """`plain` walks over several chunks."""
    assert_close_trees(run_steps(toy_params, PACKED, loss=loss), plain)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_head_changes_no_gradient_with_all_that_a_family_and_a_recipe_can_ask_for(tied):
    """Scale, soft-cap, vocabulary padding, z-loss, label smoothing: chunked, sharded, in microbatches; and plain."""
    model = msgspec.structs.replace(
        TOY, vocab_padding=8, tied_head=tied, logit_scale=0.5, final_softcap=2.0
    )  # fmt: skip

    def gradient(mesh, **how):
        loss = LossConfig(z_loss_weight=0.05, label_smoothing=0.1, **how.pop("loss"))
        spec = dataclasses.replace(make_spec(PACKED, loss=loss, **how), model=model)
        with jax.set_mesh(mesh_of(mesh)):
            params = jax.jit(init, static_argnums=(0, 1))(model, AXES, jax.random.key(0))
            batch = put_batch(PACKED, AXES.spec("batch", None))
            return copy_to_host(jax.jit(functools.partial(mean_gradient, spec))(params, batch))

    wanted = gradient((1, 1), loss={"head": "full"})
    assert_close_trees(gradient((2, 4), loss={"chunk": CHUNK}, microbatches=4), wanted)
    assert wanted[1].objective > wanted[1].loss_R.sum()


def test_languages_weighed_differently_have_the_full_head_s_gradient(toy_params, one_device):
    """A cotangent for each language: what a hand-written gradient that knows only sums of losses gets wrong."""
    factor_R = np.float32([0, 2, -0.5, 0.125])

    def gradient(loss):
        def weighed(params):
            sums = loss_sums(make_spec(PACKED, loss=loss), params, jax.tree.map(jnp.asarray, PACKED))
            return jnp.sum(factor_R * sums.loss_R)

        return copy_to_host(jax.jit(jax.value_and_grad(weighed))(toy_params))

    assert_close_trees(gradient(LossConfig(chunk=CHUNK)), gradient(LossConfig(head="full")))


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


def test_moments_that_wait_in_the_host_s_memory_change_no_result(plain, toy_params):
    def memories(state):
        return {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}

    tx = make_optimizer(OPTIM, 10)
    spec = dataclasses.replace(make_spec(PACKED), optimizer_memory="host")
    with jax.set_mesh(mesh_of((4, 2))):
        state = place_state(toy_params, tx)
        state = state._replace(opt_state=jax.jit(to_host)(state.opt_state))
        placed = put_batch(PACKED, AXES.spec("batch", None))
        update = jax.jit(functools.partial(train_step, spec, tx), donate_argnums=0)
        for _ in range(STEPS):
            state, _ = update(state, placed)
            assert memories(state) == {"pinned_host"}
        assert_close_trees(copy_to_host(state.params), plain[1])
