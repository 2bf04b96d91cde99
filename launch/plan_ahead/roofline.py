"""How long a step takes at least, and the share of the chip's peak that would be: bounds, from what makers publish."""

import math
from typing import Any

import jax
import msgspec
import numpy as np

from launch.plan_ahead.collectives import Traffic, moved_by_axes
from launch.plan_ahead.program import AbstractStep
from launch.plan_ahead.topology import Topology, bandwidth
from model.flops import StepCost, Work, causal_pairs, cost_step
from train.paths import split_frozen


class Flops(msgspec.Struct, frozen=True, kw_only=True):
    """Floating-point operations of one step; a product and its sum are two."""

    products: int
    """Of parameters, over all chips, padding included: 6 N D where all are trained (`model.flops`)."""
    attention: int
    """Scores and weighted sums over all chips, of a row that is one causal segment, and their gradients."""
    compiled_per_chip: int | None
    """Matrix products in the compiled program of one chip, loops multiplied out, recomputation included."""
    compiler_per_chip: float | None
    """The compiler's own count, all operations, every loop's body once."""
    unknown_loops: tuple[str, ...] = ()
    """Loops whose length depends on data; they count once."""
    unknown_kernels: tuple[str, ...] = ()
    """Kernels that do not state their FLOPs; they count as none."""

    @property
    def model(self) -> int:
        """What the model needs, whatever is computed twice: the numerator of MFU."""
        return self.products + self.attention


class Roofline(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step that one chip's parts need by themselves at their published speed."""

    compute_s: float
    memory_s: float | None
    """None where the compiled program is not the chip's own, so that its traffic with memory says nothing."""
    links_s: float
    links_by_axes_s: dict[str, float]
    peak_flops: float
    """Of one chip, for the recipe's compute dtype."""
    tokens: int
    """Positions of a step, padding included."""
    chips: int
    model_flops: int

    @property
    def bound_s(self) -> float:
        """No step is faster: the slowest part, with everything else behind it."""
        return max(self.compute_s, self.memory_s or 0.0, self.links_s)

    @property
    def serial_s(self) -> float:
        """The same with nothing behind anything."""
        return self.compute_s + (self.memory_s or 0.0) + self.links_s

    @property
    def bound_by(self) -> str:
        """Which part that is."""
        parts = {"compute": self.compute_s, "memory": self.memory_s or 0.0, "links": self.links_s}
        return max(parts, key=lambda name: parts[name])

    def mfu(self, seconds: float) -> float:
        """Model FLOPs over what all chips could do in that time."""
        return self.model_flops / (seconds * self.peak_flops * self.chips)


def model_flops(step: AbstractStep) -> tuple[int, int]:
    """(products, attention) of one step, as `Flops` says."""
    cfg, spec = step.spec.model, step.spec
    rows, length = step.batch.tokens_BT.shape
    pairs_L = tuple(rows * causal_pairs(length, kind.window) for kind in cfg.kinds)
    work = Work(positions=rows * length, head_positions=rows * spec.most_trained, pairs_L=pairs_L)
    cost = cost_of(step)
    return cost.product_flops(work), cost.attention_flops(work)


def cost_of(step: AbstractStep) -> StepCost:
    """The same by what it is for, as the training loop counts it too."""
    params = step.state.params
    return cost_step(step.spec.model, params, split_frozen(params, step.spec.freeze)[0])


def draw_roofline(
    step: AbstractStep, topology: Topology, devices: np.ndarray, flops: Flops, moved_bytes: int, traffic: list[Traffic]
) -> Roofline:
    """The roofline of a compiled step on the chips of a mesh."""
    chip = topology.chip
    assert chip is not None and flops.compiled_per_chip is not None, "only programs of known chips have a roofline"
    mesh_axes = list(jax.sharding.get_mesh().shape)
    links = {
        "+".join(axes): moved / bandwidth(topology, devices, [mesh_axes.index(name) for name in axes])
        for axes, moved in moved_by_axes(traffic).items()
    }
    peak = chip.peak_flops(step.spec.compute.dtype)
    return Roofline(
        compute_s=flops.compiled_per_chip / peak,
        memory_s=moved_bytes / chip.memory_bytes_per_s if topology.platform == "tpu" else None,
        links_s=math.fsum(links.values()),
        links_by_axes_s=links,
        peak_flops=peak,
        tokens=math.prod(step.batch.tokens_BT.shape),
        chips=topology.size,
        model_flops=flops.model,
    )


def to_builtins(roofline: Roofline) -> dict[str, Any]:
    """Fields and what follows from them."""
    return msgspec.to_builtins(roofline) | {
        "bound_s": roofline.bound_s,
        "bound_by": roofline.bound_by,
        "serial_s": roofline.serial_s,
        "mfu_at_most": roofline.mfu(roofline.bound_s),
        "mfu_serial": roofline.mfu(roofline.serial_s),
    }
