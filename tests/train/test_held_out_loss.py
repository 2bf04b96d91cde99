"""The loss of held-out rows while training: the loss that it should be, on any mesh, and nothing changes by looking."""

import dataclasses
import functools
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from toy import AXES, LANGUAGES, TOLERANCE, TOY, lay_out, make_examples, mesh_of, most_trained, pack_pairs

import train.loop
from data.held_out import HeldOutRows
from model.config import ComputeConfig
from model.parallel import MeshConfig
from train.config import LossConfig
from train.held_out import HeldOutJob, make_look, scalars_of
from train.stage import LONG, Stage
from train.step import StepSpec, loss_sums

ROWS = pack_pairs(make_examples(20, seed=9))


class KnownRows(HeldOutRows):
    """Ten rows of the toy data, in batches."""

    def batches(self, *, rows, index, count):
        padded = ROWS + [[]] * (-len(ROWS) % rows)
        part = rows // count
        return [lay_out(padded[at : at + part]) for at in range(index * part, len(padded), rows)]

    @property
    def languages(self):
        return LANGUAGES


SPEC = StepSpec(
    model=TOY, axes=AXES, compute=ComputeConfig(), num_languages=2, most_trained=1, microbatches=3, num_sources=2,
    gradient_share=True,
)  # fmt: skip
"""Of a training that has other languages, shorter answers, and microbatches."""


@functools.cache
def wanted():
    from toy import copy_to_host

    from model.transformer import init

    batch = lay_out(ROWS)
    with jax.set_mesh(mesh_of((1, 1))):
        params = jax.jit(init, static_argnums=(0, 1))(TOY, AXES, jax.random.key(0))
        spec = dataclasses.replace(
            SPEC, num_languages=4, most_trained=most_trained(batch), loss=LossConfig(head="full"), num_sources=0,
            gradient_share=False,
        )  # fmt: skip
        return copy_to_host(jax.jit(loss_sums, static_argnums=0)(spec, params, batch))


@pytest.mark.parametrize(
    ("shape", "batch_rows"), [((1, 1), 3), ((1, 1), 16), ((4, 2), 8), (MeshConfig(fsdp=2, sequence=4), 4)]
)
def test_it_is_the_loss_of_all_rows_however_they_are_cut(shape, batch_rows, toy_params):
    job = HeldOutJob(rows=KnownRows(None, [], 16), every=5, batch_rows=batch_rows)
    with jax.set_mesh(mesh_of(shape)):
        from model.transformer import abstract

        like = abstract(TOY, AXES)
        params = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding.spec), toy_params, like)
        record = make_look(job, SPEC)(params)
    sums = wanted()
    for name, sums_R in (("loss_sum", sums.loss_R), ("weight", sums.weight_R)):
        found = [record[name][language] for language in LANGUAGES[1:]]
        np.testing.assert_allclose(found, sums_R[1:], rtol=TOLERANCE["rtol"], atol=1e-4)  # written to four places
    assert record["seconds"] > 0


def test_the_untrained_and_the_last_state_are_looked_at_whatever_the_interval():
    job = HeldOutJob(rows=KnownRows(None, [], 16), every=4, batch_rows=1)
    assert [step for step in range(11) if job.is_due(step, last=10)] == [0, 4, 8, 10]


def test_a_mean_over_languages_counts_each_the_same():
    scalars = scalars_of({"loss_sum": {"ar": 300.0, "sw": 2.0}, "weight": {"ar": 100.0, "sw": 2.0}})
    assert scalars == {"held_out/ar": 3.0, "held_out/sw": 1.0, "held_out/macro": 2.0}


def test_a_process_that_looks_is_known_to_look_and_may_compile():
    """A stalled look was told as one at the metrics, and its first, compiled, one had no more time than they have."""
    stage, seen = Stage(), []
    stage.writes(7, ahead=7)

    def look(params):
        seen.append(stage.now)
        return {"loss_sum": {"ar": 1.0}, "weight": {"ar": 1.0}}

    nothing = train.loop._Run._make([None] * len(train.loop._Run._fields))
    writer: Any = SimpleNamespace(write_event=lambda *event: None)
    run = nothing._replace(look=look, stage=stage, writer=writer)
    train.loop._look(run, {}, 7)
    (moment,) = seen
    assert (moment.what, moment.allowance, moment.order) == ("looks at held-out rows after step 7", LONG, (7, 4))
    stage.saves(7)
    assert stage.now is not None and stage.now.order > moment.order
