"""The step benchmark's table: medians over steps, and ratios of steps on the same batch."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from data.batch import Batch
from tests.bench.worker import Outcome
from tests.bench.workload import count_positions

WARM_UP = 3
"""First steps of each contender, which are not counted; the first compiles."""
COLUMNS = (
    "contender", "positions", "ms/step", "fastest", "real tok/s", "target tok/s", "MFU", "peak memory", "ratio",
    "last loss",
)  # fmt: skip


def print_table(console: Console, outcomes: list[Outcome], batches: Sequence[Batch], *, microbatches: int) -> None:
    """Prints a row for each contender, and what MFU is of."""
    utilisation = outcomes[0].utilisation
    assert utilisation is not None, "the first contender is polytune's"
    used = [batches[index % len(batches)] for index in range(WARM_UP, len(outcomes[0].steps))]
    flops_S = np.array([utilisation.count_flops(batch) for batch in used])
    real_S = np.array([(batch.segments_BT > 0).sum() for batch in used])
    target_S = np.array([(batch.loss_weight_BT > 0).sum() for batch in used])
    first_S = _seconds(outcomes[0])
    table = Table(
        caption="ratio: this row's seconds over polytune's on the same batch; median (lowest to highest step)"
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "contender" else "right", no_wrap=True)
    for outcome in outcomes:
        contender = outcome.contender
        if outcome.failure:
            table.add_row(contender.name, "failed, see above")
            continue
        seconds_S = _seconds(outcome)
        ratio_S = seconds_S / first_S
        positions = np.median([
            count_positions(batch, packed=contender.is_packed, microbatches=microbatches) for batch in used
        ])  # fmt: skip
        peak = utilisation.peak_of_all
        table.add_row(
            contender.name,
            f"{positions:,.0f}",
            f"{1e3 * np.median(seconds_S):,.1f}",
            f"{1e3 * seconds_S.min():,.1f}",
            f"{np.median(real_S / seconds_S):,.0f}",
            f"{np.median(target_S / seconds_S):,.0f}",
            "-" if peak is None else f"{np.median(flops_S / seconds_S) / peak:.1%}",
            f"{outcome.peak_bytes / 2**30:.2f} GiB",
            "1" if outcome is outcomes[0] else f"{np.median(ratio_S):.2f} ({ratio_S.min():.2f} to {ratio_S.max():.2f})",
            f"{outcome.steps[-1].loss:.4f}",
        )
    console.print(utilisation.describe(), highlight=False, soft_wrap=True)
    console.print(describe_agreement(outcomes), highlight=False, soft_wrap=True)
    console.print(table)


def describe_outcome(outcome: Outcome) -> str:
    """One line, for who cannot wait for the table."""
    if outcome.failure:
        return f"{outcome.contender.name} failed: {outcome.failure}"
    seconds_S, first, last = _seconds(outcome), outcome.steps[0], outcome.steps[-1]
    return (
        f"{outcome.contender.name}: {1e3 * np.median(seconds_S):,.1f} ms/step, first {first.seconds:.1f} s, loss "
        f"{first.loss:.4f} to {last.loss:.4f}, peak {outcome.peak_bytes / 2**30:.2f} GiB"
    )


def describe_agreement(outcomes: list[Outcome]) -> str:
    """How far the contenders' first losses and gradient norms are from the first contender's, at most."""
    first_C2 = np.array([outcome.steps[0][:2] for outcome in outcomes if outcome.steps])
    loss, norm = np.abs(first_C2 / first_C2[0] - 1).max(axis=0)
    return (
        f"first batch: loss {first_C2[0, 0]:.6f}, gradient norm {first_C2[0, 1]:.6f}; the others are within {loss:.1e} "
        f"and {norm:.1e} of them"
    )


def _seconds(outcome: Outcome) -> np.ndarray:
    return np.array([step.seconds for step in outcome.steps[WARM_UP:]])
