"""A plan in the terminal."""

import math

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.plan_ahead.memory import MemoryPlan
from launch.plan_ahead.plan import AheadPlan
from launch.plan_ahead.topology import Topology
from model.chips import GIB
from model.parallel import describe_axes

MEMORY_KINDS = ("parameters", "optimizer", "gradients", "logits", "activations", "batch", "padding", "code")


def print_ahead_plan(plan: AheadPlan, topology: Topology, console: Console) -> None:
    """Prints the whole plan, and first what it takes for granted."""
    console.print(
        f"{plan.topology}: {topology.size} x {topology.chip.name if topology.chip else 'simulated CPU device'}, "
        f"mesh {describe_axes(plan.mesh)}; {plan.parameters:,} parameters, {plan.used_parameters:,} used for a token; "
        f"{plan.batch_rows} rows of {plan.row_length} a step in {plan.microbatches} microbatch(es), "
        f"attention {plan.attention}, remat {plan.remat}; "
        f"compiled in {plan.compile_s:.0f} s by the {plan.compiler} compiler",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    for assumption in plan.assumptions:
        console.print(Text(f"assumed: {assumption}", "yellow"), soft_wrap=True)
    console.print(_memory_table(plan.memory))
    _print_flops(plan, console)
    if plan.traffic is None:
        console.print("no collectives and no roofline: the compiler keeps no program that does not fit")
    elif not plan.traffic:
        console.print("no collectives")
    else:
        console.print(_traffic_table(plan))
    _print_roofline(plan, topology, console)
    console.print(Text(verdict(plan), "bold green" if plan.fits else "bold red"), soft_wrap=True)


def verdict(plan: AheadPlan) -> str:
    """Fits or not, by how much, and then what to do."""
    memory = plan.memory
    if plan.fits:
        return (
            f"fits: {_gib(memory.total)} of {_gib(memory.available)} a chip, {_gib(memory.spare)} to spare "
            f"({memory.total / memory.available:.0%} used)"
        )
    return (
        f"does not fit: {_gib(memory.total)} needed, {_gib(memory.available)} a chip, {_gib(-memory.spare)} too much; "
        "use more train.microbatches, compute.remat: block, shorter rows or more chips; --search tries the first two"
    )


def _memory_table(memory: MemoryPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("memory of a chip", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for kind in (*MEMORY_KINDS, "total"):
        size = getattr(memory, kind)
        name = "activations and other temporaries" if kind == "activations" else kind
        table.add_row(name, f"{size / GIB:.3f}", f"{size / memory.available:.1%}")
    table.add_row("available", f"{memory.available / GIB:.3f}", "")
    return table


def _print_flops(plan: AheadPlan, console: Console) -> None:
    flops, size = plan.flops, math.prod(plan.mesh.values())
    lines = [
        f"FLOPs of a step: products with parameters {flops.products:.4g}, causal attention {flops.attention:.4g}; "
        f"a chip's share of both {flops.model / size:.4g}"
    ]
    if flops.compiled_per_chip is not None:
        extra = flops.compiled_per_chip * size / flops.model
        lines.append(
            f"compiled: {flops.compiled_per_chip:.4g} a chip in matrix products, {extra:.2f} times the model's "
            f"(the compiler's own count, each loop's body once: {flops.compiler_per_chip or 0:.4g})"
        )
    if flops.unknown_loops:
        lines.append(
            f"{len(flops.unknown_loops)} loop(s) of a length that depends on data, counted once: FLOPs, bytes and "
            f"collectives inside are too low ({', '.join(flops.unknown_loops[:4])})"
        )
    if flops.unknown_kernels:
        lines.append(f"FLOPs of kernels that state none are left out: {', '.join(flops.unknown_kernels[:4])}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _traffic_table(plan: AheadPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, justify in (("collective", "left"), ("mesh axes", "left"), ("a step", "right"), ("GB sent", "right")):
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for item in plan.traffic or ():
        table.add_row(item.kind, "+".join(item.axes), f"{item.times:,}", f"{item.moved_bytes / 1e9:.3f}")
    table.caption = "GB that one chip sends in one step"
    table.caption_justify = "left"
    return table


def _print_roofline(plan: AheadPlan, topology: Topology, console: Console) -> None:
    drawn = plan.roofline
    if drawn is None or topology.chip is None:
        return
    memory = "not known" if drawn.memory_s is None else f"{drawn.memory_s:.3f} s"
    links = ", ".join(f"{axes} {seconds:.3f} s" for axes, seconds in drawn.links_by_axes_s.items()) or "none"
    console.print(
        f"roofline: compute {drawn.compute_s:.3f} s, memory {memory}, links {drawn.links_s:.3f} s ({links}); "
        f"no step is faster than {drawn.bound_s:.3f} s (bound by {drawn.bound_by}), with nothing overlapping "
        f"{drawn.serial_s:.3f} s\n"
        f"MFU {drawn.mfu(drawn.serial_s):.1%} to {drawn.mfu(drawn.bound_s):.1%}: (products + causal attention) / (time "
        f"x {drawn.chips} chips x {drawn.peak_flops:.4g} FLOP/s); {drawn.tokens / drawn.serial_s:,.0f} to "
        f"{drawn.tokens / drawn.bound_s:,.0f} positions a second. Peaks: {topology.chip.source}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
