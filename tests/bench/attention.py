"""Times attention over packed rows by each kernel that runs here, and measures what each needs of memory.

    python -m tests.bench.attention [--lengths 512 2048 8192] [--example 512] [--blocks 128 512]

Every kernel at every length is a fresh process; those of one length take turns, one step each. A step is the weighted
sums and the gradients of queries, keys and values, from random arrays. The norms of all four must agree before anything
is timed. Peak memory is the process's VmHWM (of a GPU its own), interpreter and libraries and compiler included;
beside it stands what the compiled program asks for by itself: its arguments, results and scratch.
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

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
"""Relative, of norms: kernels differ in the order of additions, and in bfloat16 in what they round."""


class Shape(NamedTuple):
    """Of queries, keys and values."""

    rows: int
    length: int
    heads: int
    kv_heads: int
    width: int
    example: int
    """Tokens of each packed example; 0: a row is one."""
    dtype: str


class Attention:
    """A contender, in its own process."""

    def __init__(self, shape: Shape, compute: dict[str, Any], cores: int):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
        # Imported here: the allocator's setting comes before any array.
        from launch.runtime import set_up_process

        set_up_process(keep_memory=True)
        import jax

        from model.parallel import MeshConfig, make_mesh

        jax.set_mesh(make_mesh(MeshConfig(fsdp=1), jax.devices()[:1]))
        self._arguments = make_arguments(shape)
        self._step = jax.jit(functools.partial(step, shape, compute)).lower(*self._arguments).compile()

    def describe(self) -> dict[str, Any]:
        """The bytes of the compiled program."""
        memory = self._step.memory_analysis()
        parts = (memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes)
        return {"bytes": sum(parts)}

    def step(self) -> tuple[list[float], float]:
        """The norms of the weighted sums and the gradients, and the seconds that took."""
        import jax
        import numpy as np

        began = time.perf_counter()
        norms, gradients = jax.block_until_ready(self._step(*self._arguments))
        seconds = time.perf_counter() - began
        del gradients
        return np.asarray(norms).tolist(), seconds

    def peak(self) -> int:
        """Peak memory so far: of the device where it tells, else of the process."""
        import jax

        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else read_peak()


def make_arguments(shape: Shape):
    """Queries, keys, values, the cotangent, segments and positions."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    rng, index = np.random.default_rng(0), np.arange(shape.length, dtype=np.int32)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    arrays = [rng.standard_normal((shape.rows, shape.length, n, shape.width), dtype=np.float32) for n in heads]
    example = shape.example or shape.length
    places = [np.tile(each, (shape.rows, 1)).astype(np.int32) for each in (index // example + 1, index % example)]
    return jax.block_until_ready(jax.device_put((*(jnp.asarray(x).astype(shape.dtype) for x in arrays), *places)))


def step(shape: Shape, compute: dict[str, Any], q_BTNH, k_BSKH, v_BSKH, g_BTNH, segments_BT, positions_BT):
    """The norms of the weighted sums and of the gradients of queries, keys and values, and these gradients."""
    import jax
    import jax.numpy as jnp

    from model.attention import Places, attend, visible
    from model.attention_choice import choose_attention, platform_in_use
    from model.attention_packed import attend_packed
    from model.config import ComputeConfig, ModelConfig
    from model.parallel import AxisRules

    model = ModelConfig(
        num_layers=1, dim=1, num_heads=shape.heads, num_kv_heads=shape.kv_heads, head_dim=shape.width, mlp_dim=1
    )
    config = ComputeConfig(dtype=shape.dtype, **compute)  # type: ignore[arg-type]
    kernel = choose_attention(model, config, platform=platform_in_use(), row_length=shape.length)
    axes, scale, places = AxisRules(length=None), shape.width**-0.5, Places(segments_BT, positions_BT)

    def run(q_BTNH, k_BSKH, v_BSKH):
        if kernel.name != "dense":
            return attend_packed(q_BTNH, k_BSKH, v_BSKH, places, places, kernel=kernel, scale=scale, axes=axes)
        return attend(
            q_BTNH, k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 3, 1), visible(places, places),
            layout="BKHS", scale=scale, out_spec=axes.spec("batch", None, "heads", None),
        )  # fmt: skip

    q_BTNH, k_BSKH, v_BSKH, g_BTNH = (
        jax.reshard(x, axes.spec("batch", None, "heads", None)) for x in (q_BTNH, k_BSKH, v_BSKH, g_BTNH)
    )
    out_BTNH, pull = jax.vjp(run, q_BTNH, k_BSKH, v_BSKH)
    gradients = pull(g_BTNH)
    norms = [jnp.sqrt(jnp.sum(jnp.square(each.astype(jnp.float32)))) for each in (out_BTNH, *gradients)]
    return jnp.stack(norms), gradients


def compare(shape: Shape, kernels: dict[str, dict[str, Any]], *, steps: int, cores: int) -> list[list[str]]:
    """The table's rows for one length.

    Raises SystemExit when a kernel's numbers are others than the first's.
    """
    workers = {name: Process(functools.partial(Attention, shape, compute, cores)) for name, compute in kernels.items()}
    try:
        facts = {name: worker.ask("describe") for name, worker in workers.items()}
        first = {name: worker.ask("step")[0] for name, worker in workers.items()}
        wanted = next(iter(first.values()))
        for name, given in first.items():
            if any(abs(a / b - 1) > TOLERANCE[shape.dtype] for a, b in zip(given, wanted, strict=True)):
                raise SystemExit(f"not the same work: {name} gives {given}, the first kernel {wanted}")
        turns = [{name: worker.ask("step")[1] for name, worker in workers.items()} for _ in range(steps)]
        peaks = {name: worker.ask("peak") for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.stop()
    base, rows = next(iter(kernels)), []
    for name in kernels:
        seconds, ratios = [turn[name] for turn in turns], [turn[name] / turn[base] for turn in turns]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        asked = facts[name]["bytes"]
        rows.append([
            f"{shape.length:,}", name, f"{1e3 * statistics.median(seconds):,.1f}", "1" if name == base else spread,
            f"{peaks[name] / 1e6:,.0f} MB", f"{asked / 1e6:,.0f} MB", f"{asked / facts[base]['bytes']:.2f}",
        ])  # fmt: skip
    return rows


def list_kernels(blocks: list[int]) -> dict[str, dict[str, Any]]:
    """What can be compared on this machine's devices, by name."""
    kernels = {name: {"attention": name} for name in ("dense", "blockwise")}
    kernels |= {f"blockwise, {block}": {"attention": "blockwise", "attention_block": block} for block in blocks}
    import jax

    from model.attention_choice import FASTEST

    fastest = FASTEST.get(jax.default_backend())
    return kernels | ({fastest: {"attention": fastest}} if fastest else {})


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.attention", description=__doc__)
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    add("--rows", type=int, default=1)
    add("--heads", type=int, default=4)
    add("--kv-heads", type=int, default=2)
    add("--width", type=int, default=64)
    add("--example", type=int, default=0, help="tokens of each packed example (default: a row is one)")
    add("--dtype", choices=sorted(TOLERANCE), default="float32")
    add("--blocks", type=int, nargs="*", default=[], help="block sizes to try beside the default")
    add("--steps", type=int, default=7, help="timed steps of each kernel (default: 7)")
    add("--cores", type=int, default=os.cpu_count())
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(" ".join(["$ python -m tests.bench.attention", *sys.argv[1:]]))
    table = Table("row", "kernel", "ms/step", "ratio", "peak", "program", "ratio")
    kernels, load = list_kernels(options.blocks), os.getloadavg()[0]
    for length in options.lengths:
        shape = Shape(
            options.rows, length, options.heads, options.kv_heads, options.width, options.example, options.dtype
        )  # fmt: skip
        for row in compare(shape, kernels, steps=options.steps, cores=options.cores):
            table.add_row(*row)
    packed = f"examples of {options.example}" if options.example else "one example a row"
    console.print(
        f"{options.rows} row(s), {packed}, {options.heads} heads of {options.width}, {options.kv_heads} of keys, "
        f"{options.dtype}, {options.steps} interleaved steps, {options.cores} cores, "
        f"load average {load:.1f} to {os.getloadavg()[0]:.1f}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
