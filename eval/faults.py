"""What went wrong in a run and was lived through: steps whose update was not made, saves that failed."""

from collections.abc import Sequence

from eval.run_files import FailedSave, StepRecord, last_of_each_step

REASONS = {"non_finite": "loss or gradient not finite", "spike": "spike of loss or gradient"}
"""Why training skips a step, by the word it writes, as people read it."""
MOST_LISTED = 8


def skipped_steps(records: Sequence[StepRecord]) -> dict[str, list[int]]:
    """The steps of the run's history whose update was not made, by the reason that was written.

    A step that was skipped and, after a restart, made is none of them.
    """
    found: dict[str, list[int]] = {}
    for record in last_of_each_step(records):
        if record.skipped is not None:
            found.setdefault(record.skipped, []).append(record.step)
    return found


def count_faults(records: Sequence[StepRecord], failed_saves: Sequence[FailedSave]) -> dict[str, float]:
    """How often each sort of fault occurred, by what it is; those that did not are not in it."""
    found = {
        f"skipped steps: {REASONS.get(reason, reason)}": float(len(steps))
        for reason, steps in skipped_steps(records).items()
    }
    return found | ({"failed saves": float(len(failed_saves))} if failed_saves else {})


def describe_faults(records: Sequence[StepRecord], failed_saves: Sequence[FailedSave]) -> list[str]:
    """A sentence for each sort of fault that occurred; none where nothing went wrong."""
    told = [
        f"{_count(len(steps), 'step')} skipped, {REASONS.get(reason, reason)}: {_list(steps)}. "
        "The parameters stayed as they were; offending_rows.jsonl names the rows."
        for reason, steps in skipped_steps(records).items()
    ]
    if failed_saves:
        steps = sorted({failed.step for failed in failed_saves})
        told.append(f"{_count(len(failed_saves), 'save')} failed: {_list(steps)}. The last: {failed_saves[-1].error}")
    return told


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def _list(steps: Sequence[int]) -> str:
    shown = ", ".join(f"{step:,}" for step in steps[:MOST_LISTED])
    more = f" and {len(steps) - MOST_LISTED:,} more" if len(steps) > MOST_LISTED else ""
    return f"step{'s' if len(steps) != 1 else ''} {shown}{more}"
