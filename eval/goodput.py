"""Goodput: how much of a run's wall time, restarts included, went into steps that are part of its history."""

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

import msgspec

from eval.run_files import HeldOutRecord, RunFiles, SaveRecord, StartRecord, StepRecord

PARTS = {
    "useful": "steps of the final history, but for their waits",
    "skipped": "steps whose update was not made, and finding the rows to blame",
    "compile": "making the step's programs",
    "data_wait": "steps waiting for data",
    "saving": "training standing still for a checkpoint",
    "held_out": "looking at held-out rows",
    "repeated": "steps that were done again after a restart, or lost",
    "starting": "from a process's start to its first step",
    "down": "between the last record of a process and the start of the next",
    "other": "all else",
}
"""What wall time goes into, each with what it means."""


class Goodput(msgspec.Struct, frozen=True, kw_only=True):
    """Wall time from the start of the first process to the last record, and the parts it is made of."""

    wall_s: float
    seconds: dict[str, float]
    """By the names of `PARTS`."""

    @property
    def share(self) -> float:
        """Useful seconds over all."""
        return self.seconds["useful"] / self.wall_s if self.wall_s > 0 else 0.0


class _Attempt(msgspec.Struct, frozen=True, kw_only=True):
    start: StartRecord
    began: float
    ready: float
    ended: float
    steps: tuple[StepRecord, ...]


def measure(run: RunFiles) -> Goodput | None:
    """The goodput of a run, of its records alone; None where they tell no times.

    A step counts once, in the attempt whose state the run went on from: a resume at step 100 makes all later steps of
    earlier attempts repeated. Of a step that compiled, what exceeds the median of those that did not is compiling.
    A skipped step is not useful; what it left to be written falls into the time of the next.

    Steps of 1 s; killed after 3, resumed from 2 half a minute later, ended after 4: useful 4, repeated 1, down 30.
    """
    tries = _attempts(run)
    if not tries:
        return None
    final: dict[int, StepRecord] = {}
    repeated: list[StepRecord] = []
    for attempt in tries:
        repeated += [final.pop(step) for step in list(final) if step > attempt.start.step]
        final |= {record.step: record for record in attempt.steps}
    seconds = dict.fromkeys(PARTS, 0.0)
    plain = [record.step_s or 0.0 for record in final.values() if not record.compiled]
    for record in final.values():
        lasted = record.step_s or 0.0
        working = min(lasted, median(plain)) if record.compiled and plain else lasted
        waited = min(record.data_wait_s, working)
        lost = working - waited if record.skipped else 0.0
        if (before := final.get(record.step - 1)) is not None and before.skipped and before.attempt == record.attempt:
            lost = max(lost, min(record.write_s, working - waited))
        seconds["useful"] += working - waited - lost
        seconds["skipped"] += lost
        seconds["data_wait"] += waited
        seconds["compile"] += lasted - working
    seconds["repeated"] = sum(record.step_s or 0.0 for record in repeated)
    seconds["saving"] = sum(record.seconds for record in run.saves)
    seconds["held_out"] = sum(record.seconds for record in run.held_out)
    seconds["starting"] = sum(attempt.ready - attempt.began for attempt in tries)
    seconds["down"] = sum(after.began - before.ended for before, after in pairwise(tries))
    wall_s = tries[-1].ended - tries[0].began
    seconds["other"] = max(0.0, wall_s - sum(seconds.values()))
    return Goodput(wall_s=wall_s, seconds=seconds)


def _attempts(run: RunFiles) -> list[_Attempt]:
    """The processes of a run in order; none began before the one before it had ended."""
    found: list[_Attempt] = []
    for start in run.starts:
        if start.time is None:
            continue
        steps = tuple(record for record in run.steps if record.attempt == start.attempt and record.step_s is not None)
        times = [start.time, *_times(start.attempt, run.steps), *_times(start.attempt, run.saves)]
        ended = max(times + _times(start.attempt, run.held_out))
        began = max(start.time - (start.process_s or 0.0), found[-1].ended if found else 0.0)
        first = max(start.time, began)
        found.append(_Attempt(start=start, began=began, ready=first, ended=max(ended, first), steps=steps))
    while found and not found[-1].steps:  # a finished run that was started once more, perhaps days later
        found.pop()
    return found


def _times(attempt: int, records: Sequence[StepRecord] | Sequence[SaveRecord] | Sequence[HeldOutRecord]) -> list[float]:
    return [record.time for record in records if record.attempt == attempt and record.time is not None]
