"""What a person sees while training: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from train.device_memory import MemoryUse
from train.metrics import StepRecord

ShowStep = Callable[[StepRecord], None]
"""Called with each finished step."""
LONG_WAIT, STEPS_BEFORE_HINT = 0.1, 50
"""Share of the time that steps may wait for data before a hint is given, and steps that are looked at first."""


@contextmanager
def show_progress(*, start: int, steps: int, every: int, console: Console) -> Iterator[ShowStep]:
    """Shows step, loss, smoothed tokens/s, share of waits for data, memory, time left; `every`: between plain lines.

    Says once which setting helps where steps wait for data.
    """
    pace = Pace()

    def hint(record: StepRecord) -> None:
        if record.step == start + STEPS_BEFORE_HINT and pace.data_wait > LONG_WAIT:
            console.print(
                f"steps wait for data {pace.data_wait:.0%} of the time: raise data.workers (processes that load rows) "
                "or data.prefetch",
                highlight=False, soft_wrap=True,
            )  # fmt: skip

    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("train", total=steps, completed=start, loss="-", speed="compiling ...")

            def show(record: StepRecord) -> None:
                pace.add(record)
                bar.update(task, completed=record.step, loss=f"{record.loss:.3f}")
                if pace.tokens:
                    bar.update(task, speed="  ".join(pace.describe()))
                hint(record)

            yield show
        return

    def print_line(record: StepRecord) -> None:
        pace.add(record)
        head = f"step {record.step}/{steps}  loss {record.loss:.4f}  padding {record.padding:.1%}"
        if record.step == start + 1:
            console.print(f"{head}  (compiled in {record.seconds:.1f} s)", highlight=False)
        elif record.step % every == 0 or record.step == steps:
            left_s = pace.mean_s * (steps - record.step)
            line = "  ".join((head, *pace.describe(), f"ETA {left_s:.0f} s"))
            console.print(line, highlight=False, soft_wrap=True)
        hint(record)

    yield print_line


class Pace:
    """Speed over the last twenty or so steps; those in which a program was compiled say nothing of it."""

    def __init__(self):
        self.tokens = self._targets = self._seconds = self._waited = self._flops_share = 0.0
        self._all_seconds, self._steps = 0.0, 0
        self._memory: MemoryUse | None = None
        self._has_mfu = False

    def add(self, record: StepRecord) -> None:
        """Counts one more step in."""
        self._memory = record.memory or self._memory
        if record.compiled:
            return
        self._all_seconds += record.seconds
        self._steps += 1
        self.tokens = 0.95 * self.tokens + record.tokens
        self._targets = 0.95 * self._targets + record.weight
        self._seconds = 0.95 * self._seconds + record.seconds
        self._waited = 0.95 * self._waited + record.split.data_wait_s
        if record.mfu is not None:
            self._has_mfu = True
        self._flops_share = 0.95 * self._flops_share + (record.mfu or 0.0) * record.seconds

    @property
    def mean_s(self) -> float:
        """Seconds of a step since the start."""
        return self._all_seconds / max(self._steps, 1)

    @property
    def data_wait(self) -> float:
        """Share of the time in which steps waited for data."""
        return self._waited / max(self._seconds, 1e-9)

    def describe(self) -> list[str]:
        """The figures, each in a few characters: those that are not known are left out."""
        seconds = max(self._seconds, 1e-9)
        parts = [
            f"{self.tokens / seconds:,.0f} real, {self._targets / seconds:,.0f} target tokens/s",
            f"wait {self.data_wait:.0%}",
        ]
        if self._has_mfu:
            parts.append(f"MFU {self._flops_share / seconds:.1%}")
        if self._memory is not None:
            limit = f" of {self._memory.limit / 2**30:.1f}" if self._memory.limit else ""
            parts.append(f"{self._memory.of} {self._memory.peak / 2**30:.1f}{limit} GiB")
        return parts


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]}  ETA"),
        TimeRemainingColumn(compact=True),
        console=console,
        refresh_per_second=4,
    )
