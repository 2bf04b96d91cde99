"""Times the full and the chunked loss head, and measures what each needs of memory.

    python -m tests.bench.loss_head [--vocabularies 32768 262144] [--chunks 256 1024]

Every head is a fresh process; both take turns, one step each. A step is the loss and its gradient for hidden states
and head, from random arrays, float32, tied. The losses and the norms of both gradients must agree before anything
is timed. Peak memory is the process's VmHWM, interpreter and libraries and compiler included; beside it stands what
the compiled program asks for by itself: its arguments, results and scratch.
"""

import argparse
import functools
import os
import statistics
import sys
import time
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.bench.memory import read_peak
from tests.bench.process import Process

TOLERANCE = 1e-4
"""Relative, of losses and norms: both sides are float32 and differ in the order of additions."""


class Shape(NamedTuple):
    """Of a head and of what it is given."""

    rows: int
    positions: int
    """Per row, K."""
    dim: int
    vocabulary: int
    trained: float
    """Share of the positions that have a weight."""
    dtype: str


class Head:
    """A contender, in its own process."""

    def __init__(self, shape: Shape, loss: dict[str, Any], cores: int, keep_memory: bool):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        # Imported here: the allocator's setting comes before any array.
        from launch.runtime import set_up_process

        set_up_process(keep_memory=keep_memory)
        import jax

        from model.parallel import MeshConfig, make_mesh

        jax.set_mesh(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
        self._arguments = make_arguments(shape)
        self._step = jax.jit(functools.partial(step, shape, loss)).lower(*self._arguments).compile()

    def describe(self) -> dict[str, Any]:
        """The versions, and the bytes of the compiled program."""
        import jax

        memory = self._step.memory_analysis()
        parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
        return {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "bytes": sum(parts)}

    def step(self) -> tuple[float, float, float, float]:
        """The loss, the norms of the two gradients, and the seconds that took."""
        import jax
        import numpy as np

        began = time.perf_counter()
        loss, gradients, norms = jax.block_until_ready(self._step(*self._arguments))
        seconds = time.perf_counter() - began
        del gradients
        return float(loss), *map(float, np.asarray(norms)), seconds

    def peak(self) -> int:
        """Peak memory so far: of the device where it tells, else of the process."""
        import jax

        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else read_peak()


def model_of(shape: Shape):
    """A model with the head of this shape; its layers are never made."""
    from model.config import ModelConfig

    return ModelConfig(
        vocab_size=shape.vocabulary, num_layers=1, dim=shape.dim, num_heads=1, num_kv_heads=1, head_dim=2, mlp_dim=1
    )


def make_arguments(shape: Shape):
    """Hidden states, table, targets, weights: of unit size, as at a model's start.

    Drawn by NumPy in place: JAX's generators need several times the table, which would hide what the head needs.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng, lead = np.random.default_rng(0), (shape.rows, shape.positions)
    table_VD = rng.standard_normal((shape.vocabulary, shape.dim), dtype=np.float32)
    table_VD *= shape.dim**-0.5
    x_BKD = jnp.asarray(rng.standard_normal((*lead, shape.dim), dtype=np.float32)).astype(shape.dtype)
    targets_BK = rng.integers(0, shape.vocabulary, lead, dtype=np.int32)
    weight_BK = (rng.random(lead) < shape.trained).astype(np.float32)
    return jax.block_until_ready(jax.device_put((x_BKD, table_VD, targets_BK, weight_BK)))


def step(shape: Shape, loss: dict[str, Any], x_BKD, table_VD, targets_BK, weight_BK):
    """The mean loss, its gradients for hidden states and table, and their norms."""
    import jax
    import jax.numpy as jnp

    from model.block import embedding_of, run
    from model.parallel import AxisRules
    from train.chunked_loss import chunked_losses
    from train.config import LossConfig
    from train.loss import full_losses

    config, model = LossConfig(**loss), model_of(shape)

    def mean_loss(x_BKD, table_VD):
        if config.head == "full":
            decode = functools.partial(run, embedding_of(model, AxisRules()), {"weight": table_VD}, method="decode")
            losses = full_losses(config, decode(x_BKD), targets_BK, weight_BK, vocab_size=model.vocab_size)
        else:
            losses = chunked_losses(config, model, x_BKD, table_VD, targets_BK, weight_BK)
        return losses.objective / jnp.sum(weight_BK)

    value, gradients = jax.value_and_grad(mean_loss, argnums=(0, 1))(x_BKD, table_VD)
    norms = jnp.stack([jnp.sqrt(jnp.sum(jnp.square(each.astype(jnp.float32)))) for each in gradients])
    return value, gradients, norms


def compare(
    shape: Shape, heads: dict[str, dict[str, Any]], *, steps: int, cores: int, keep_memory: bool
) -> list[list[str]]:
    """The table's rows for one vocabulary.

    Raises SystemExit when a head's loss or gradient is another than the first's.
    """
    workers = {name: Process(functools.partial(Head, shape, loss, cores, keep_memory)) for name, loss in heads.items()}
    try:
        facts = {name: worker.ask("describe") for name, worker in workers.items()}
        first = {name: worker.ask("step") for name, worker in workers.items()}
        wanted = next(iter(first.values()))
        for name, given in first.items():
            if any(abs(a / b - 1) > TOLERANCE for a, b in zip(given[:3], wanted[:3], strict=True)):
                raise SystemExit(f"not the same work: {name} gives {given[:3]}, the first head {wanted[:3]}")
        turns = [{name: worker.ask("step")[3] for name, worker in workers.items()} for _ in range(steps)]
        peaks = {name: worker.ask("peak") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()
    base = next(iter(heads))
    rows = []
    for name in heads:
        seconds, ratios = [turn[name] for turn in turns], [turn[name] / turn[base] for turn in turns]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        asked = facts[name]["bytes"]
        rows.append([
            f"{shape.vocabulary:,}", name, f"{1e3 * statistics.median(seconds):,.0f}", f"{1e3 * min(seconds):,.0f}",
            "1" if name == base else spread,
            f"{peaks[name] / 1e6:,.0f} MB", f"{peaks[name] / peaks[base]:.2f}",
            f"{asked / 1e6:,.0f} MB", f"{asked / facts[base]['bytes']:.2f}",
        ])  # fmt: skip
    return rows


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.loss_head", description=__doc__)
    add = parser.add_argument
    add("--vocabularies", type=int, nargs="+", default=[32_768, 262_144])
    add("--rows", type=int, default=8)
    add("--positions", type=int, default=256, help="of each row (default: 256)")
    add("--dim", type=int, default=256)
    add("--dtype", default="float32")
    add("--trained", type=float, default=1.0, help="share of the positions that have a weight (default: 1)")
    add("--chunks", type=int, nargs="*", default=[], help="chunk sizes to try beside the default")
    add("--steps", type=int, default=7, help="timed steps of each head (default: 7)")
    add("--cores", type=int, default=os.cpu_count())
    add("--plain-malloc", action="store_true", help="leave glibc's allocator as it is")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(" ".join(["$ python -m tests.bench.loss_head", *sys.argv[1:]]))
    heads: dict[str, dict[str, Any]] = {"full": {"head": "full"}, "chunked": {}}
    heads |= {f"chunked, {chunk}": {"chunk": chunk} for chunk in options.chunks}
    load = os.getloadavg()[0]
    table = Table("vocabulary", "head", "ms/step", "fastest", "ratio", "peak", "ratio", "program", "ratio")
    for vocabulary in options.vocabularies:
        shape = Shape(
            options.rows, options.positions, options.dim, vocabulary, options.trained, options.dtype
        )  # fmt: skip
        for row in compare(
            shape, heads, steps=options.steps, cores=options.cores, keep_memory=not options.plain_malloc
        ):
            table.add_row(*row)
    console.print(
        f"{options.rows} rows of {options.positions} positions, {options.trained:.0%} trained, width {options.dim}, "
        f"{options.dtype}, {options.steps} interleaved steps, {options.cores} cores, "
        f"load average {load:.1f} to {os.getloadavg()[0]:.1f}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
