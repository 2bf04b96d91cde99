"""Steps that must not be made: what they leave as it was, what they move on, and who is to blame."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    mesh_of,
    most_trained,
    pack_pairs,
    place_state,
)

from model.config import ComputeConfig
from train.config import NonFiniteConfig, SpikeConfig, TrainConfig
from train.guard import Guard, SkippedStepsError, find_offending, losses_by_row, number_rows
from train.hosts import Share, put_batch
from train.metrics import StepRecord
from train.optim import make_optimizer, make_schedule
from train.spikes import SpikeHistory, add_step, is_spike, watch_spikes
from train.step import NON_FINITE, SOUND, SPIKE, StepSpec, judge, loss_sums, train_step

BATCH = lay_out(pack_pairs(make_examples(16)))
NAN_BATCH = BATCH._replace(loss_weight_BT=np.where(BATCH.loss_weight_BT > 0, np.float32(np.nan), 0).astype(np.float32))
SPEC = StepSpec(
    model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES), most_trained=most_trained(BATCH)
)  # fmt: skip
STEPS = 10


def later_schedule_optimizer(by):
    """The optimizer of `make_optimizer(OPTIM, STEPS)` whose schedule begins so many steps later."""
    schedule = make_schedule(OPTIM, STEPS)
    return optax.chain(
        optax.clip_by_global_norm(OPTIM.max_grad_norm),
        optax.adamw(
            lambda count: schedule(count + by), b1=OPTIM.b1, b2=OPTIM.b2, eps=OPTIM.eps,
            weight_decay=OPTIM.weight_decay,
            mask=lambda params: jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "scale", params),
        ),
    )  # fmt: skip


def test_a_skipped_step_keeps_every_bit_and_the_next_has_the_learning_rate_of_its_number(toy_params, one_device):
    """A skip that froze the schedule would train all later steps with a rate other than the one that is logged."""
    tx = make_optimizer(OPTIM, STEPS)
    update = jax.jit(functools.partial(train_step, SPEC, tx))
    state = update(place_state(toy_params, tx), BATCH)[0]
    skipped, metrics = update(state, NAN_BATCH)
    assert (int(metrics.verdict), int(skipped.step)) == (NON_FINITE, 2)
    assert_equal_trees(skipped.params, state.params)
    adam = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert_equal_trees([leaf for leaf in jax.tree.leaves(skipped.opt_state) if leaf.ndim], adam)

    after, metrics = update(place_and_skip(toy_params, tx, update), BATCH)
    assert int(metrics.verdict) == SOUND
    later = later_schedule_optimizer(by=1)
    wanted, _ = jax.jit(functools.partial(train_step, SPEC, later))(place_state(toy_params, later), BATCH)
    assert_equal_trees(copy_to_host(after.params), copy_to_host(wanted.params))


def place_and_skip(toy_params, tx, update):
    return update(place_state(toy_params, tx), NAN_BATCH)[0]


@pytest.mark.parametrize(
    ("loss", "grad_norm", "verdict"),
    [
        (2.0, 1.0, SOUND),
        (math.nan, 1.0, NON_FINITE),
        (2.0, math.inf, NON_FINITE),
        (math.inf, 100.0, NON_FINITE),
        (2.0, 4.0, SPIKE),
        (9.0, 1.0, SPIKE),
        (-9.0, 0.0, SOUND),
    ],
)
def test_a_step_is_judged_by_its_loss_and_its_gradient(loss, grad_norm, verdict):
    """Loss 2 ± 0.5 and norm 1 ± 0.5 before; a very low loss is no spike."""
    spec = dataclasses.replace(SPEC, spikes=SpikeConfig(sigma=3, window=4))
    history = SpikeHistory(jnp.array([[1.5, 2.5, 1.5, 2.5], [0.5, 1.5, 0.5, 1.5]]), jnp.int32(4))
    state = watch_spikes(optax.identity(), spec.spikes).init({})._replace(history=history)
    assert int(judge(spec, state, jnp.float32(loss), jnp.float32(grad_norm))) == verdict


def test_no_step_is_a_spike_before_the_window_is_full_and_a_new_level_is_accepted_after_a_few():
    """Against the definition in NumPy. A curriculum whose next stage has a higher loss must not be skipped for ever."""
    config = SpikeConfig(sigma=3, window=16)
    rng = np.random.default_rng(0)
    losses = np.concatenate([rng.normal(1, 0.05, 40), rng.normal(3, 0.05, 30)]).astype(np.float32)
    losses[[5, 50]] = 9, np.nan
    look = jax.jit(lambda history, loss: (is_spike(config, history, loss, loss), add_step(history, loss, loss)))
    history = watch_spikes(optax.identity(), config).init({}).history
    found, kept = [], []
    for loss in losses:
        window = np.array(kept[-16:])
        wanted = len(window) == 16 and loss > window.mean() + 3 * window.std()
        spike, history = look(history, loss)
        assert bool(spike) == wanted
        found.append(wanted)
        kept += [loss] if np.isfinite(loss) else []
    assert not any(found[:16])
    assert found[40]
    assert sum(found[40:]) < 10, "the new level is never accepted"


@pytest.mark.parametrize(("shape", "microbatches"), [((1, 1), 1), ((4, 2), 1), ((4, 2), 2), ((2, 4), 4)])
def test_losses_by_row_are_those_of_the_rows_on_any_mesh(toy_params, shape, microbatches):
    spec = dataclasses.replace(SPEC, microbatches=microbatches)
    with jax.set_mesh(mesh_of(shape)):
        numbered = put_batch(number_rows(BATCH, Share(0, 1, True)), AXES.spec("batch", None))
        found_B = losses_by_row(spec, place_state(toy_params, optax.identity()).params, numbered)
    with jax.set_mesh(mesh_of((1, 1))):
        by_row = dataclasses.replace(SPEC, num_languages=8)
        sums = jax.jit(functools.partial(loss_sums, by_row))(toy_params, number_rows(BATCH, Share(0, 1, True)))
    np.testing.assert_allclose(found_B, sums.loss_R / sums.weight_R, **TOLERANCE)


def test_rows_are_numbered_by_the_share_that_holds_them():
    half = type(BATCH)(*(field_BT[:4] for field_BT in BATCH))
    np.testing.assert_array_equal(number_rows(half, Share(1, 2, True)).language_BT[:, 0], [4, 5, 6, 7])


@pytest.mark.parametrize(
    ("losses", "rows"), [([1, math.nan, 3, math.inf], [1, 3]), ([1, 5, 3], [1, 2, 0]), ([0, 2, 0], [1])]
)
def test_rows_that_are_not_finite_are_to_blame_else_the_highest(losses, rows):
    assert find_offending(np.array(losses, np.float32)) == rows


def record_of(step, skipped):
    return StepRecord(
        step=step, loss=9.0, weight=1.0, grad_norm=2.0, learning_rate=0.1, tokens=1, padding=0.0, seconds=1.0,
        first_row=8 * (step - 1), rows=8, digest="", skipped=skipped,
    )  # fmt: skip


def test_only_steps_of_one_kind_in_a_row_end_the_run(tmp_path, monkeypatch):
    config = TrainConfig(
        steps=9, batch_rows=8, non_finite=NonFiniteConfig(max_in_a_row=2), spikes=SpikeConfig(max_in_a_row=3)
    )
    monkeypatch.setattr("train.guard.losses_by_row", lambda *_: np.arange(8, dtype=np.float32))
    guard = Guard(tmp_path, config, spec=SPEC, share=Share(0, 1, True), describe_row=None)
    kinds = ["spike", None, "non_finite", None, "spike", "spike", None, "spike", "spike", "spike"]
    for step, kind in enumerate(kinds[:-1], 1):
        assert (guard.judge(record_of(step, kind), {}, BATCH, lambda batch: batch) is None) == (kind is None)
    with pytest.raises(
        SkippedStepsError, match=r"3 steps in a row, the last: step 10 skipped \(spike\).* highest in 79"
    ):
        guard.judge(record_of(10, kinds[-1]), {}, BATCH, lambda batch: batch)
    lines = [json.loads(line) for line in (tmp_path / "offending_rows.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 5, 6, 8, 9, 10], "the last one is written before the run ends"


def test_the_first_step_that_is_not_finite_ends_the_run_where_the_recipe_says_so(tmp_path, monkeypatch):
    config = TrainConfig(steps=9, batch_rows=8, non_finite=NonFiniteConfig(action="stop"))
    monkeypatch.setattr("train.guard.losses_by_row", lambda *_: np.array([1, np.nan, 1], np.float32))
    guard = Guard(tmp_path, config, spec=SPEC, share=Share(0, 1, True), describe_row=None)
    with pytest.raises(SkippedStepsError, match=r"step 2 skipped .*finite in 1 of them: 9\. .*=skip would go on"):
        guard.judge(record_of(2, "non_finite"), {}, BATCH, lambda batch: batch)
