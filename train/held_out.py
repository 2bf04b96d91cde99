"""The loss of held-out rows by language, looked at while training: a forward pass, and nothing of what `eval` does."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data.held_out import HeldOutRows
from model.parallel import ways
from model.transformer import Params
from train.hosts import put_batch, share_of_batch
from train.step import StepSpec, loss_sums


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutJob:
    """What is looked at, how often, by how many rows at a time."""

    rows: HeldOutRows
    every: int
    """Steps between looks."""
    batch_rows: int
    """Rows of a global batch: as many as a microbatch of training, for they need no more memory."""

    def is_due(self, step: int, *, last: int) -> bool:
        """True by interval, for the untrained state and for the last."""
        return step % self.every == 0 or step == last


Look = Callable[[Params], dict[str, Any]]
"""The fields of a record about these parameters."""


def make_look(job: HeldOutJob, spec: StepSpec) -> Look:
    """The held-out loss as a function of parameters, on the mesh in use; compiled when it is first called.

    Sums and weights by language, in nats, of the bare cross-entropy. Every process of a run must call it alike.
    """
    batch_spec = spec.axes.spec("batch", None)
    share = share_of_batch(jax.sharding.get_mesh(), batch_spec, rows=job.batch_rows)
    languages = job.rows.languages
    batches = job.rows.batches(rows=job.batch_rows, index=share.index, count=share.count)
    whole = job.rows.batches(rows=job.batch_rows, index=0, count=1) if share.count > 1 else batches
    most = max(int((batch.loss_weight_BT > 0).sum(axis=1).max()) for batch in whole)
    multiple = ways(spec.axes.length, jax.sharding.get_mesh())
    spec = dataclasses.replace(
        spec, num_languages=len(languages), num_sources=0, gradient_share=False, microbatches=1,
        most_trained=-(-most // multiple) * multiple,
    )  # fmt: skip

    @jax.jit
    def add_losses(sums_2R, params, batch):
        sums = loss_sums(spec, params, batch)
        return sums_2R + jnp.stack([sums.loss_R, sums.weight_R])

    def look(params: Params) -> dict[str, Any]:
        began = time.monotonic()
        sums_2R = jnp.zeros((2, len(languages)))
        for batch in batches:
            sums_2R = add_losses(sums_2R, params, put_batch(batch, batch_spec, shares=share.count))
        loss_R, weight_R = np.asarray(jax.device_get(sums_2R), np.float64)
        seen = np.flatnonzero(weight_R).tolist()
        return {
            "seconds": round(time.monotonic() - began, 6),
            "loss_sum": {languages[i]: round(float(loss_R[i]), 4) for i in seen},
            "weight": {languages[i]: float(weight_R[i]) for i in seen},
        }

    return look


def scalars_of(record: dict[str, Any]) -> dict[str, float]:
    """Mean loss of each language, and the mean of these, for trackers."""
    losses = {tag: record["loss_sum"][tag] / weight for tag, weight in record["weight"].items()}
    by_language = {f"held_out/{tag}": loss for tag, loss in losses.items()}
    return by_language | {"held_out/macro": sum(losses.values()) / len(losses)}
