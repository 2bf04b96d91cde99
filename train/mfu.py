"""Model FLOPs utilisation: what the model needs for its real tokens over what the devices could do in that time."""

import dataclasses

import jax
import numpy as np

from data.batch import Batch
from model import transformer
from model.chips import find_chip
from model.config import ModelConfig
from model.flops import StepCost, Work, cost_step
from train.config import TrainConfig
from train.paths import split_frozen
from train.step import StepSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utilisation:
    """The formula of a run: everything but a batch and its seconds."""

    model: ModelConfig
    cost: StepCost
    devices: int
    peak_flops_per_s: float | None
    """Of one device; None: not known, and then there is no MFU."""
    peak_source: str
    """Whose word that is, or why there is none."""

    def count_flops(self, batch: Batch) -> float:
        """FLOPs of a step on these rows: real tokens, heads where something is trained, keys that queries see.

        Padding, recomputation, and logits that are made only to fill up K count nothing.
        """
        is_real_BT = batch.segments_BT > 0
        keys_BT = np.where(is_real_BT, batch.positions_BT + 1, 0)
        sums = {window: int(_seen(keys_BT, window).sum()) for window in {kind.window for kind in self.model.kinds}}
        work = Work(
            positions=int(is_real_BT.sum()),
            head_positions=int((batch.loss_weight_BT > 0).sum()),
            pairs_L=tuple(sums[kind.window] for kind in self.model.kinds),
        )
        return float(self.cost.product_flops(work) + self.cost.attention_flops(work))

    @property
    def peak_of_all(self) -> float | None:
        """FLOP/s of all devices together; None where the peak is not known."""
        return None if self.peak_flops_per_s is None else self.peak_flops_per_s * self.devices

    def describe(self) -> str:
        """Formula, peak and denominator, in one paragraph for the start of a run."""
        body = " + ".join(f"{flops} x {count:,}" for flops, count in self.cost.parameters.items())
        flops, head = self.cost.head
        pairs = " or ".join(f"{each:,}" for each in sorted({*self.cost.pair_L}))
        formula = (
            f"model FLOPs of a step: {body} parameters a real token + {flops} x {head:,} of the head a trained token + "
            f"{pairs} (12 x heads x width; 4 x where no gradient goes) for each key that a real token sees in each "
            "layer. A parameter counts 2, and 2 if it is trained, and 2 if something trained lies before it; padding "
            "and recomputation count nothing"
        )
        if self.peak_flops_per_s is None:
            return f"{formula}. MFU is not shown: {self.peak_source}"
        return (
            f"{formula}. MFU = those / (seconds x {self.devices} device(s) x {self.peak_flops_per_s:.4g} FLOP/s); "
            f"peak: {self.peak_source}"
        )


def make_utilisation(spec: StepSpec, train: TrainConfig) -> Utilisation:
    """The formula for the mesh in use: the recipe's peak, else the published one of its devices."""
    devices = jax.sharding.get_mesh().devices
    kind, dtype = devices.flat[0].device_kind, spec.compute.dtype
    chip = find_chip(kind)
    peak, source = None, f"the peak of this device ({kind}) is unknown; train.peak_flops_per_s gives one"
    if train.peak_flops_per_s is not None:
        peak, source = train.peak_flops_per_s, "train.peak_flops_per_s of the recipe"
    elif chip is not None:
        peak, source = chip.peak_flops(dtype), f"{chip.name}, {dtype}: {chip.source}"
    params = transformer.abstract(spec.model, spec.axes)
    return Utilisation(
        model=spec.model,
        cost=cost_step(spec.model, params, split_frozen(params, spec.freeze)[0]),
        devices=devices.size,
        peak_flops_per_s=peak,
        peak_source=source,
    )


def _seen(keys_BT: np.ndarray, window: int) -> np.ndarray:
    return np.minimum(keys_BT, window) if window else keys_BT
