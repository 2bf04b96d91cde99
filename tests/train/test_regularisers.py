"""Frozen parameters, the average of parameters, and noise on embeddings, in the step and over a run."""

import dataclasses
import functools
import os
import signal

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import (
    AXES,
    LANGUAGES,
    OPTIM,
    TOLERANCE,
    TOY,
    assert_close_trees,
    assert_equal_trees,
    copy_to_host,
    lay_out,
    make_examples,
    mesh_of,
    most_trained,
    pack_pairs,
    place_state,
)

from model.checkpoint import CheckpointError, find_checkpoint, load_params
from model.config import ComputeConfig
from model.parallel import MeshConfig
from model.transformer import Noise, abstract, apply_hidden
from train.checkpoint import restore_newest
from train.config import CheckpointConfig, OptimConfig, TrainConfig
from train.hosts import put_batch
from train.job import TrainJob
from train.loop import run_training
from train.noise import add_noise, drop_entries, noise_rows
from train.optim import make_optimizer
from train.paths import list_paths, overlay, restrict, split_frozen
from train.state import abstract_state, with_ema
from train.step import StepSpec, loss_sums, mean_gradient, train_step

ROWS, ALPHA = 8, 5.0
BATCHES = [lay_out(pack_pairs(make_examples(2 * ROWS, seed=step))) for step in range(6)]
FREEZE = ("embedding/*", "layers/*/mlp/*", "*/scale")
MUON = OptimConfig(name="muon", learning_rate=0.01, eps=1e-3, weight_decay=0.1)
SPEC = StepSpec(
    model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES),
    most_trained=-(-max(map(most_trained, BATCHES)) // 4) * 4, seed=3,
)  # fmt: skip


NOISY = dataclasses.replace(SPEC, neftune_alpha=ALPHA, dropout=0.1)


def move_all(before, after):
    """Whether every parameter has changed somewhere."""
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)))


def run_steps(params, spec, *, mesh=(1, 1), steps=3, optim=OPTIM):
    """States after each of some steps, in host memory, the first as it began, and the metrics."""
    tx = make_optimizer(optim, 10, freeze=spec.freeze)
    with jax.set_mesh(mesh_of(mesh)):
        state = place_state(params, tx)
        state = state if spec.ema_decay is None else with_ema(state, spec.freeze)
        update = jax.jit(functools.partial(train_step, spec, tx), donate_argnums=0)
        states, metrics = [copy_to_host(state)], []
        for batch in BATCHES[:steps]:
            state, found = update(state, put_batch(batch, AXES.spec("batch", None)))
            states.append(copy_to_host(state))
            metrics.append(copy_to_host(found))
        return states, metrics


@pytest.fixture(scope="module")
def frozen_run(toy_params):
    """Three steps with most parameters frozen and an average of the others."""
    return run_steps(toy_params, dataclasses.replace(SPEC, freeze=FREEZE, ema_decay=0.75))


def test_frozen_parameters_keep_their_bits_and_have_no_state(frozen_run, toy_params):
    states, _ = frozen_run
    trained, frozen = split_frozen(toy_params, FREEZE)
    assert sorted(list_paths(trained)) == [
        f"layers/0/attention/{name}/weight" for name in ("key", "out", "query", "value")
    ]
    assert_equal_trees(restrict(states[-1].params, frozen), frozen)
    assert move_all(trained, restrict(states[-1].params, trained))
    count = sum(leaf.size for leaf in jax.tree.leaves(trained))
    assert sum(leaf.size for leaf in jax.tree.leaves(states[-1].opt_state)) == 2 * count + 2  # moments, two counts


def test_the_gradient_has_trained_parameters_only_and_so_has_its_norm(frozen_run, toy_params, one_device):
    spec = dataclasses.replace(SPEC, freeze=FREEZE)
    placed = jax.tree.map(jnp.asarray, (toy_params, BATCHES[0]))
    gradient = copy_to_host(jax.jit(functools.partial(mean_gradient, spec))(*placed)[0])
    whole = copy_to_host(jax.jit(functools.partial(mean_gradient, SPEC))(*placed)[0])
    assert_close_trees(gradient, restrict(whole, gradient))
    norm = np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(frozen_run[1][0].grad_norm, norm, rtol=1e-5)
    assert norm < 0.9 * np.sqrt(sum(np.sum(leaf.astype(np.float64) ** 2) for leaf in jax.tree.leaves(whole)))


def test_the_average_starts_as_the_parameters_and_follows_them(frozen_run):
    """0.75 x average + 0.25 x parameters after every update, of trained parameters only."""
    states, _ = frozen_run
    average = restrict(states[0].params, states[0].ema)
    assert_equal_trees(states[0].ema, average)
    for state in states[1:]:
        average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, restrict(state.params, average))
        assert_close_trees(state.ema, average)


def test_mesh_and_microbatches_change_no_frozen_averaged_noisy_step(toy_params):
    spec = dataclasses.replace(NOISY, freeze=FREEZE[:1], ema_decay=0.75)
    wanted, wanted_metrics = run_steps(toy_params, spec, steps=2)
    spec = dataclasses.replace(spec, microbatches=4, compute=ComputeConfig(remat="block"))
    for mesh in ((2, 4), MeshConfig(fsdp=2, sequence=4)):
        given, metrics = run_steps(toy_params, spec, mesh=mesh, steps=2)
        assert_close_trees(given[-1].params, wanted[-1].params)
        assert_close_trees((given[-1].ema, metrics), (wanted[-1].ema, wanted_metrics))


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (
            ("layers/1/*",),
            r"train.freeze: 'layers/1/\*' matches none of the 11 parameters; near it: layers/0/.*first layer",
        ),
        (("embeding/weight",), "near it: embedding/weight"),
        (("*",), r"train.freeze=\['\*'\] freezes all 11 parameters; leave some to be trained"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(toy_params, freeze, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(OPTIM, 10, freeze=freeze).init(toy_params)


def test_split_trees_overlay_to_what_they_were(toy_params):
    trained, frozen = split_frozen(toy_params, FREEZE)
    assert not set(list_paths(trained)) & set(list_paths(frozen))
    assert_equal_trees(overlay(jax.tree.map(np.zeros_like, toy_params), overlay(toy_params, trained)), toy_params)
    assert_equal_trees(overlay(overlay(toy_params, jax.tree.map(np.zeros_like, frozen)), frozen), toy_params)


def noise_of(batch, dim=64, *, alpha=ALPHA, step=0, scale=1.0):
    noise = noise_rows(0, jnp.int32(step), like=jnp.asarray(batch.tokens_BT))
    zeros_BTD = jnp.zeros((*batch.tokens_BT.shape, dim))
    return np.asarray(add_noise(zeros_BTD, alpha, noise, jnp.asarray(batch.segments_BT), scale=scale))


def test_noise_is_scaled_by_the_example_s_own_length_not_by_the_padded_row_s(one_device):
    """Packed or alone, an example's noise is uniform within alpha / sqrt(L D); peers take the padded row for L."""
    for examples in (make_examples(2), make_examples(1)):
        batch = lay_out([examples] * 8)
        noise_BTD = noise_of(batch)
        for segment, example in enumerate(examples, 1):
            inside = noise_BTD[batch.segments_BT == segment]
            bound = ALPHA / np.sqrt((len(example.ids) - 1) * 64)
            assert 0.97 * bound < np.abs(inside).max() <= bound
            np.testing.assert_allclose(np.mean(inside**2), bound**2 / 3, rtol=0.1)
        assert not noise_BTD[batch.segments_BT == 0].any()


def test_noise_differs_between_steps_and_rows_and_follows_the_embeddings_scale(one_device):
    batch = lay_out([make_examples(2)] * 2)
    first = noise_of(batch)
    assert not np.any((first[0] == first[1]) & (first[0] != 0))
    assert not np.any((first == noise_of(batch, step=1)) & (first != 0))
    np.testing.assert_allclose(noise_of(batch, scale=4.0), 4 * first, **TOLERANCE)


def test_there_is_noise_in_training_and_none_where_a_loss_is_only_looked_at(toy_params, one_device):
    """A peer's hook on the embedding stayed on in evaluation. Here noise is an argument, and only the step gives it."""
    params, batch = jax.tree.map(jnp.asarray, toy_params), put_batch(BATCHES[0], AXES.spec("batch", None))
    quiet = jax.jit(functools.partial(loss_sums, SPEC))(params, batch)
    np.testing.assert_array_equal(jax.jit(functools.partial(loss_sums, NOISY))(params, batch).loss_R, quiet.loss_R)
    trained = jax.jit(functools.partial(mean_gradient, NOISY))(params, batch, jnp.int32(0))[1]
    assert np.all(np.abs(trained.loss_R - quiet.loss_R)[1:] > 1e-3)


def test_rows_that_lie_elsewhere_on_the_mesh_keep_their_noise(toy_params):
    """On a pod the hosts' rows are not consecutive: each row had the noise of another, and the run another loss."""
    order = (0, 2, 4, 6, 1, 3, 5, 7)
    moved = jax.tree.map(lambda x_BT: x_BT[np.array(order)], BATCHES[0])
    with jax.set_mesh(mesh_of((4, 2))):
        params = place_state(toy_params, make_optimizer(OPTIM, 6)).params
        (wanted, sums), (found, found_sums) = [
            jax.device_get(
                jax.jit(functools.partial(mean_gradient, spec))(
                    params, put_batch(batch, AXES.spec("batch", None)), jnp.int32(5)
                )
            )
            for spec, batch in [
                (NOISY, BATCHES[0]),
                (dataclasses.replace(NOISY, row_order=order, microbatches=2), moved),
            ]
        ]
    assert_close_trees(found, wanted)
    np.testing.assert_allclose(found_sums.loss_R, sums.loss_R, **TOLERANCE)


def test_dropout_zeroes_its_share_of_entries_and_keeps_the_mean(one_device):
    rows = noise_rows(0, jnp.int32(0), like=jnp.zeros((4, 2), jnp.int32))
    ones_BTD = jnp.ones((4, 50, 40))
    dropped = [np.asarray(drop_entries(ones_BTD, 0.25, rows, place)) for place in (1, 2)]
    for each in dropped:
        np.testing.assert_allclose(np.unique(each), [0, 4 / 3], rtol=1e-6)
        np.testing.assert_allclose((each == 0).mean(axis=(1, 2)), np.full(4, 0.25), atol=0.04)
    agree = (dropped[0] == dropped[1]).mean()
    assert abs(agree - (0.75**2 + 0.25**2)) < 0.03


def test_every_layer_s_branches_and_the_embeddings_drop_out_by_themselves(toy_params, one_device):
    """The places asked for, seen through the model: one embedding, attention and MLP of both layers, none twice."""
    places = []

    def count(x_BTD, layer, branch):
        jax.debug.callback(lambda layer: places.append((int(layer), branch)), layer)
        return x_BTD

    noise = Noise(lambda x_BTD: x_BTD, count)
    batch = BATCHES[0]
    inputs = (jnp.asarray(x_BT) for x_BT in (batch.tokens_BT, batch.segments_BT, batch.positions_BT))
    jax.jit(functools.partial(apply_hidden, TOY, AXES, noise=noise))(toy_params, *inputs)
    jax.effects_barrier()
    assert sorted(places) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def run_job(run_dir, *, stop_at=None):
    """Six steps of a job with everything on, or fewer: told to stop once a step has been shown."""
    train = TrainConfig(steps=6, batch_rows=ROWS, log_every=5, trackers=())
    job = TrainJob(
        run_dir=run_dir, spec=dataclasses.replace(NOISY, freeze=FREEZE[:1], ema_decay=0.75), optim=MUON,
        train=train, checkpoint=CheckpointConfig(save_every=100), seed=0, languages=LANGUAGES, plan_hash="plan",
        most_trained_S=(SPEC.most_trained,) * 6, meta={"model": msgspec.to_builtins(TOY)},
    )  # fmt: skip
    run_dir.mkdir(exist_ok=True)

    def show(record):
        if record.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    with jax.set_mesh(mesh_of((4, 2))):
        return run_training(job, open_batches=lambda row: iter(BATCHES[row // ROWS :]), show=show)


def saved(run_dir):
    """The newest state, restored onto one device."""
    tx = make_optimizer(MUON, 6, freeze=FREEZE[:1])
    with jax.set_mesh(mesh_of((1, 1))):
        like = with_ema(abstract_state(TOY, AXES, tx), FREEZE[:1])
        restored = restore_newest(run_dir, like, plan_hash="plan")
        assert restored is not None
        return copy_to_host(restored[0])


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """A run that was never stopped, and one that was and went on."""
    folder = tmp_path_factory.mktemp("regularised")
    run_job(folder / "whole")
    assert run_job(folder / "stopped", stop_at=2).step == 3
    assert run_job(folder / "stopped").resumed_from == 3
    return folder


def test_a_resumed_run_has_the_average_state_and_noise_of_one_that_never_stopped(resumed):
    assert_equal_trees(saved(resumed / "stopped"), saved(resumed / "whole"))


def test_the_average_is_a_model_by_itself_and_the_optimizer_s_state_holds_nothing_frozen(
    resumed, toy_params, one_device
):
    run_dir = resumed / "whole"
    state, ema = saved(run_dir), load_params(find_checkpoint(run_dir), abstract(TOY, AXES), weights="ema")
    assert_equal_trees(ema, overlay(state.params, state.ema))
    assert sorted({*list_paths(ema)} - {*list_paths(state.ema)}) == ["embedding/weight"]
    assert move_all(state.ema, restrict(state.params, state.ema))
    assert "embedding" in (run_dir / "checkpoints/6/params/_METADATA").read_text()
    assert "attention" in (run_dir / "checkpoints/6/opt_state/_METADATA").read_text()
    assert "embedding" not in (run_dir / "checkpoints/6/opt_state/_METADATA").read_text()


def test_a_run_without_an_average_says_so_to_who_asks_for_it(resumed, one_device):
    (resumed / "whole" / "checkpoints" / "6" / "ema").rename(resumed / "ema")
    found = find_checkpoint(resumed / "whole")
    with pytest.raises(CheckpointError, match=r"holds no average of parameters: its run had no train.ema_decay"):
        load_params(found, abstract(TOY, AXES), weights="ema")
    (resumed / "ema").rename(found.path / "ema")


@pytest.mark.parametrize(
    ("name", "freeze", "message"),
    [
        ("adamw", FREEZE[:1], "opt_state"),
        ("muon", FREEZE, "opt_state"),
    ],
)
def test_another_optimizer_or_other_frozen_parameters_are_not_resumed(resumed, one_device, name, freeze, message):
    tx = make_optimizer(OptimConfig(name=name, learning_rate=0.01), 6, freeze=freeze)
    with pytest.raises(CheckpointError, match=f"holds the state of another optimizer.*{message}"):
        restore_newest(resumed / "whole", abstract_state(TOY, AXES, tx), plan_hash="plan")
