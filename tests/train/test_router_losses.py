"""The router's losses: their values, and that no way to split a batch changes them or their gradient."""

import functools
import json

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import (
    AXES,
    LANGUAGES,
    TOLERANCE,
    TOY,
    assert_close_trees,
    assert_equal_trees,
    copy_to_host,
    lay_out,
    make_examples,
    most_trained,
    pack_pairs,
)

from model import transformer
from model.config import ComputeConfig, ExpertsConfig, LayerKind
from model.moe import RouterSums
from model.parallel import MeshConfig, make_mesh
from train.config import RouterLossConfig, TrainConfig
from train.hosts import put_batch
from train.loss import LossSums, load_balance_loss, router_z_loss
from train.metrics import MetricsWriter, describe_batch, read_metrics
from train.step import StepMetrics, StepSpec, loss_sums, mean_gradient, split_rows
from train.timing import Split

MIXTURE = msgspec.structs.replace(
    TOY, num_layers=4, layers=(LayerKind(experts=True), LayerKind()),
    experts=ExpertsConfig(num_experts=8, per_token=2, dim=8),
)  # fmt: skip
BATCH = lay_out(pack_pairs(make_examples(64)))
BOTH = RouterLossConfig(load_balance_weight=0.5, z_loss_weight=0.25)
ONE_DEVICE = (1, 1, 1)


def make_spec(**how):
    return StepSpec(
        axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES), most_trained=most_trained(BATCH),
        **{"model": MIXTURE, "router": BOTH, **how},
    )  # fmt: skip


@pytest.fixture(scope="module")
def params():
    with enter(ONE_DEVICE):
        return copy_to_host(jax.jit(transformer.init, static_argnums=(0, 1))(MIXTURE, AXES, jax.random.key(0)))


def enter(shape):
    fsdp, expert, tensor = shape
    return jax.set_mesh(
        make_mesh(MeshConfig(fsdp=fsdp, expert=expert, tensor=tensor), jax.devices()[: fsdp * expert * tensor])
    )


def gradient_of(spec, params, mesh=ONE_DEVICE):
    with enter(mesh):
        like = transformer.abstract(MIXTURE, AXES)
        placed = jax.tree.map(lambda leaf, other: jax.device_put(leaf, other.sharding.spec), params, like)
        batch = put_batch(BATCH, AXES.spec("batch", None))
        return copy_to_host(jax.jit(functools.partial(mean_gradient, spec))(placed, batch))


@pytest.fixture(scope="module")
def plain(params):
    """One device, one microbatch."""
    return gradient_of(make_spec(), params)


def transcribe(logits_LBTE, is_real_BT, top):
    """The two losses from router logits, one token of one layer after the other, as the papers write them."""
    layers, *_, num = logits_LBTE.shape
    chosen_E, share_E, squares, tokens = np.zeros(num), np.zeros(num), 0.0, 0
    for layer in range(layers):
        for row, at in zip(*np.nonzero(is_real_BT), strict=True):
            logits_E = logits_LBTE[layer, row, at]
            z = np.log(sum(np.exp(logit) for logit in logits_E))
            for expert in np.argsort(-logits_E)[:top]:
                chosen_E[expert] += 1
            share_E += np.exp(logits_E - z)
            squares += z**2
            tokens += 1
    balance = num * sum(chosen / tokens * (share / tokens) for chosen, share in zip(chosen_E, share_E, strict=True))
    return balance, squares / tokens, RouterSums(*map(np.float32, (chosen_E, share_E, squares, tokens)))


def test_values_equal_the_papers_formulas():
    rng = np.random.default_rng(0)
    is_real_BT = rng.random((4, 9)) < 0.7
    balance, z, sums = transcribe(rng.normal(0, 2, (3, 4, 9, 5)), is_real_BT, top=2)
    sums = RouterSums(*map(jnp.asarray, sums))
    np.testing.assert_allclose(load_balance_loss(sums), balance, **TOLERANCE)
    np.testing.assert_allclose(router_z_loss(sums), z, **TOLERANCE)


@pytest.mark.parametrize(
    ("chosen", "share", "wanted"),
    [
        ([2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], 2.0),
        ([4.0, 4.0, 0.0, 0.0], [2.0, 2.0, 0.0, 0.0], 4.0),
        ([4.0, 4.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0], 4.0),
    ],
)
def test_balance_of_known_numbers(chosen, share, wanted):
    """Four tokens, two of four experts each: 2 when all are equal, 4 when probability lies on the chosen."""
    sums = RouterSums(jnp.array(chosen), jnp.array(share), jnp.array(8.0), jnp.array(4.0))
    assert float(load_balance_loss(sums)) == wanted
    assert float(router_z_loss(sums)) == 2.0


def test_parts_with_the_counts_of_the_whole_add_up_to_the_whole():
    """And their own losses do not, which is why the whole is counted first."""
    rng = np.random.default_rng(1)
    parts = [transcribe(rng.normal(0, 2, (1, 2, 5, 4)), np.ones((2, 5), bool), top=2)[2] for _ in range(3)]
    parts = [RouterSums(*map(jnp.asarray, part)) for part in parts]
    whole = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    for loss in (load_balance_loss, router_z_loss):
        np.testing.assert_allclose(sum(loss(part, whole) for part in parts), loss(whole), **TOLERANCE)
    own = sum(float(load_balance_loss(part)) for part in parts) / 3
    assert abs(own - float(load_balance_loss(whole))) > 0.01


def test_a_step_counts_real_tokens_of_layers_with_experts_only(plain):
    sums = plain[1].router
    real = (BATCH.segments_BT > 0).sum()
    assert sums.tokens == 2 * real and sums.chosen_E.sum() == 2 * 2 * real
    np.testing.assert_allclose(sums.probability_E.sum(), 2 * real, **TOLERANCE)


def test_the_gradient_is_that_of_the_whole_objective(params, plain, one_device):
    """Written in one piece: mean loss + weights x losses, the choices held fixed."""

    def objective(params):
        sums = loss_sums(make_spec(), params, jax.tree.map(jnp.asarray, BATCH))
        router = sums.router
        chosen_E = jax.lax.stop_gradient(router.chosen_E) / router.tokens
        balance = 8 * jnp.dot(chosen_E, router.probability_E / router.tokens)
        return sums.loss_R.sum() / sums.weight_R.sum() + 0.5 * balance + 0.25 * router.log_z_squared / router.tokens

    assert_close_trees(plain[0], copy_to_host(jax.jit(jax.grad(objective))(params)))
    router_gradient = plain[0]["layers"]["0"]["experts"]["router"]
    without = gradient_of(make_spec(router=RouterLossConfig()), params)[0]["layers"]["0"]["experts"]["router"]
    assert np.abs(router_gradient - without).max() > 0.1 * np.abs(without).max()


@pytest.mark.parametrize(("microbatches", "mesh"), [(4, ONE_DEVICE), (1, (2, 2, 2)), (4, (2, 2, 2))], ids=str)
def test_microbatches_and_mesh_change_no_gradient_and_no_sum(microbatches, mesh, params, plain):
    assert_close_trees(gradient_of(make_spec(microbatches=microbatches), params, mesh), plain)


def test_the_z_loss_alone_is_the_same_in_four_microbatches(params):
    """Nothing is counted first then: the number of tokens is read off the batch."""
    router = RouterLossConfig(z_loss_weight=0.25)
    whole = gradient_of(make_spec(router=router), params)
    assert_close_trees(gradient_of(make_spec(router=router, microbatches=4), params), whole)


def test_the_microbatches_choose_differently(params, one_device):
    """Or the tests above would hold for a mean of the parts' losses too."""
    parts = jax.tree.map(lambda x_BT: split_rows(jnp.asarray(x_BT), 4), BATCH)
    run = jax.jit(functools.partial(loss_sums, make_spec()))
    sums = [run(params, jax.tree.map(lambda x, i=i: x[i], parts)).router for i in range(4)]
    shares = np.array([part.chosen_E / part.tokens for part in sums])
    assert np.ptp(shares, axis=0).max() > 0.02


def count_scans(**how):
    """Scans over layers or microbatches in the step's program."""
    spec = make_spec(microbatches=4, **how)
    like = transformer.abstract(MIXTURE, AXES)
    return str(jax.make_jaxpr(functools.partial(mean_gradient, spec))(like, jax.tree.map(jnp.asarray, BATCH))).count(
        "= scan["
    )


def test_only_balancing_pays_for_a_pass_that_counts(one_device):
    """It is one scan over microbatches, with one over layers in it."""
    without = count_scans(router=RouterLossConfig(z_loss_weight=1.0))
    assert count_scans(router=RouterLossConfig(load_balance_weight=1.0)) == without + 2


def test_losses_of_weight_zero_are_measured_and_add_nothing(params, plain):
    gradient, sums = gradient_of(make_spec(router=RouterLossConfig()), params)
    assert_equal_trees(sums, plain[1])

    def token_loss(params):
        sums = loss_sums(make_spec(), params, jax.tree.map(jnp.asarray, BATCH))
        return sums.loss_R.sum() / sums.weight_R.sum()

    with enter(ONE_DEVICE):
        assert_close_trees(gradient, copy_to_host(jax.jit(jax.grad(token_loss))(params)))


def test_weights_without_experts_are_refused_by_name():
    with pytest.raises(ValueError, match=r"load_balance_weight=0\.5 and z_loss_weight=0\.25, but no layer"):
        make_spec(model=TOY)


def test_a_recipe_sets_the_weights_under_train():
    recipe = {"steps": 2, "batch_rows": 8, "router": {"load_balance_weight": 0.01}}
    assert msgspec.convert(recipe, TrainConfig).router == RouterLossConfig(load_balance_weight=0.01)
    with pytest.raises(msgspec.ValidationError, match=r"\$\.router\.z_loss_weight"):
        msgspec.convert({**recipe, "router": {"z_loss_weight": -1.0}}, TrainConfig)


def write_step(tmp_path, router):
    sums = LossSums(jnp.array([0.0, 3.0, 9.0, 0.0]), jnp.array([0.0, 2.0, 4.0, 0.0]), router)
    facts = describe_batch(BATCH, first_row=0, num_languages=len(LANGUAGES))
    writer = MetricsWriter(tmp_path, attempt=1, languages=LANGUAGES, language_every=2, trackers=())
    writer.write_step(1, StepMetrics(sums, jnp.float32(0.5)), facts, learning_rate=0.25, split=Split(device_s=2.0))
    writer.close()
    return read_metrics(tmp_path)[0]


def test_losses_are_logged_beside_the_loss_not_in_it(tmp_path):
    router = RouterSums(jnp.array([6.0, 2.0]), jnp.array([3.0, 1.0]), jnp.array(10.0), jnp.array(4.0))
    written = write_step(tmp_path, router)
    assert (written["loss"], written["load_balance_loss"], written["router_z_loss"]) == (2.0, 2.5, 2.5)


def test_a_model_without_experts_logs_no_router(tmp_path):
    assert not {"load_balance_loss", "router_z_loss"} & set(json.dumps(write_step(tmp_path, None)))
