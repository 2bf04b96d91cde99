"""What a person sees while training: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from train.metrics import StepRecord

ShowStep = Callable[[StepRecord], None]
"""Called with each finished step."""


@contextmanager
def show_progress(*, start: int, steps: int, every: int, console: Console) -> Iterator[ShowStep]:
    """Shows step, loss, real tokens/s (smoothed) and time left; `every` is the interval of plain lines."""
    if console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task("train", total=steps, completed=start, loss="-", speed="compiling ...")
            speed = _Smoothed()

            def show(record: StepRecord) -> None:
                if record.step > start + 1:  # the first step holds the compilation
                    bar.update(task, speed=f"{speed.add(record.tokens, record.seconds):,.0f} real tokens/s")
                bar.update(task, completed=record.step, loss=f"{record.loss:.3f}")

            yield show
        return
    speed, seconds = _Smoothed(), []

    def print_line(record: StepRecord) -> None:
        head = f"step {record.step}/{steps}  loss {record.loss:.4f}  padding {record.padding:.1%}"
        if record.step == start + 1:
            console.print(f"{head}  (compiled in {record.seconds:.1f} s)", highlight=False)
            return
        seconds.append(record.seconds)
        rate = speed.add(record.tokens, record.seconds)
        if record.step % every == 0 or record.step == steps:
            left_s = sum(seconds) / len(seconds) * (steps - record.step)
            console.print(f"{head}  {rate:,.0f} real tokens/s  ETA {left_s:.0f} s", highlight=False)

    yield print_line


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(bar_width=None),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]}  ETA"),
        TimeRemainingColumn(),
        console=console,
        refresh_per_second=4,
    )


class _Smoothed:
    """Tokens per second over the last twenty or so steps."""

    def __init__(self):
        self._tokens = 0.0
        self._seconds = 0.0

    def add(self, tokens: int, seconds: float) -> float:
        """The rate with one more step counted in."""
        self._tokens = 0.95 * self._tokens + tokens
        self._seconds = 0.95 * self._seconds + seconds
        return self._tokens / max(self._seconds, 1e-9)
