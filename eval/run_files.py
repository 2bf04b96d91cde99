"""What a run directory holds, read with care: any part may be missing, half written or not there yet."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from data.schema import DataError
from data.statistics import CorpusStatistics, read_statistics

RUN_PARTS = ("recipe.yaml", "plan", "metrics.jsonl", "run_card.json", "eval", "checkpoints")

T = TypeVar("T")
Record = TypeVar("Record", "StepRecord", "LanguagesRecord", "HeldOutRecord")


class StartRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the run began, from the state after `step`."""

    attempt: int
    step: int
    time: float | None = None
    devices: Any = None
    mesh: Any = None
    process_s: float | None = None
    """How long the process had run by then."""


class StepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One optimizer step as training wrote it. `weight` is trained tokens, `tokens` real positions."""

    step: int
    attempt: int = 1
    loss: float | None = None
    weight: float | None = None
    grad_norm: float | None = None
    learning_rate: float | None = None
    tokens: float | None = None
    padding: float | None = None
    tokens_per_s: float | None = None
    digest: str | None = None
    time: float | None = None
    mfu: float | None = None
    step_s: float | None = None
    data_wait_s: float = 0.0
    write_s: float = 0.0
    """Of the step's time, spent on the step before: writing it, and finding its rows where it was skipped."""
    compiled: bool = False
    """Whether a program was made in the step's time."""
    skipped: str | None = None
    """Why the update was not made; None: it was."""


class SaveRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint began to be saved, for which training stood still so long."""

    step: int
    attempt: int = 1
    time: float | None = None
    seconds: float = 0.0


class FailedSave(msgspec.Struct, frozen=True, kw_only=True):
    """A checkpoint of this step could not be written."""

    step: int
    attempt: int = 1
    error: str = ""


class HeldOutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Loss sums and weights by language of the run's own held-out rows, after `step`."""

    step: int
    attempt: int = 1
    time: float | None = None
    seconds: float = 0.0
    loss_sum: dict[str, float] = {}
    weight: dict[str, float] = {}


class GroupSums(msgspec.Struct, frozen=True, kw_only=True):
    """Loss sums, trained tokens, real positions and gradient norms by source."""

    loss_sum: dict[str, float] = {}
    weight: dict[str, float] = {}
    tokens: dict[str, float] = {}
    gradient: dict[str, float] = {}


class LanguagesRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Loss sums, trained tokens, real positions and gradient norms by language over steps `first_step` to `step`."""

    step: int
    first_step: int | None = None
    loss_sum: dict[str, float] = {}
    weight: dict[str, float] = {}
    tokens: dict[str, float] = {}
    gradient: dict[str, float] = {}
    by_source: GroupSums | None = None


class PlanCell(msgspec.Struct, frozen=True, kw_only=True):
    """One source in one language: what there is, what was wanted and what the plan serves."""

    source: str
    language: str
    examples: float
    tokens: float
    content_bytes: float
    wanted_share: float
    planned_examples: float
    planned_tokens: float
    realised_share: float


class PlanSummary(msgspec.Struct, frozen=True, kw_only=True):
    """plan/plan.json, as far as the report shows it."""

    hash: str = ""
    rows: int | None = None
    row_length: int | None = None
    steps: int | None = None
    unit: str = "examples"
    """What wanted and planned shares count."""
    padding: float | None = None
    cells: tuple[PlanCell, ...] = ()
    dropped: dict[str, int] = {}
    cut: dict[str, int] = {}
    bad_rows: dict[str, int] = {}


class CleaningRecord(msgspec.Struct, frozen=True, kw_only=True):
    """plan/cleaning.json, as far as the report shows it."""

    dropped: dict[str, dict[str, dict[str, int]]] = {}
    """Rows by predicate, source and language."""
    not_judged: dict[str, dict[str, dict[str, int]]] = {}
    """Rows that a predicate could say nothing about, likewise."""
    listed: tuple[dict[str, Any], ...] = ()
    """Some of the rows, with predicate, place, detail and excerpt."""
    notes: tuple[str, ...] = ()


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """eval/STEP/results.json, in the shape of lm-evaluation-harness."""

    results: dict[str, dict[str, Any]]
    groups: dict[str, dict[str, Any]] = {}
    group_subtasks: dict[str, list[str]] = {}
    configs: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    higher_is_better: dict[str, dict[str, bool]] = {}
    n_samples: dict[str, dict[str, int]] = msgspec.field(name="n-samples", default={})
    baselines: dict[str, dict[str, Any]] = {}
    by_task: dict[str, dict[str, dict[str, Any]]] = {}
    """Of tasks that ask several things: what is asked -> metric -> macro average."""
    config: dict[str, Any] = {}
    tokenizer_hash: str | None = None
    chat_template_sha: str | None = None
    date: Any = None
    total_evaluation_time_seconds: Any = None


class RunFiles(msgspec.Struct, frozen=True, kw_only=True):
    """All the report reads. None or empty: not there (or unreadable, and then `problems` says so)."""

    name: str
    recipe_text: str | None
    plan: PlanSummary | None
    statistics: CorpusStatistics | None
    bad_rows: list[dict[str, Any]]
    cleaning: CleaningRecord | None
    starts: tuple[StartRecord, ...]
    steps: tuple[StepRecord, ...]
    """In file order; steps that were run again after a kill appear again."""
    saves: tuple[SaveRecord, ...]
    failed_saves: tuple[FailedSave, ...]
    held_out: tuple[HeldOutRecord, ...]
    languages: tuple[LanguagesRecord, ...]
    evaluations: dict[int, Results]
    """By step, ascending; of the parameters as they were then."""
    samples: dict[str, list[dict[str, Any]]]
    """By task, of the newest evaluation: where it is of both, that of the parameters."""
    card: dict[str, Any] | None
    problems: tuple[str, ...]
    averaged: dict[int, Results] = {}
    """As `evaluations`, of the parameters' average over steps (`--weights ema`)."""


def read_run(run_dir: Path) -> RunFiles:
    """Everything readable in a run directory.

    Raises ValueError when the path is no run directory. A file that cannot be read is left out and named in
    `problems`: a report on a run that was killed must still open.
    """
    _refuse_other_folders(run_dir)
    problems: list[str] = []
    records = _read_json_lines(run_dir / "metrics.jsonl", problems)
    evaluations, averaged = (_read_evaluations(run_dir / "eval", suffix, problems) for suffix in ("", "-ema"))
    card = _read_json(run_dir / "run_card.json", dict, problems)
    step = max([*evaluations, *averaged], default=0)
    newest = run_dir / "eval" / (f"{step}" if step in evaluations or not averaged else f"{step}-ema")
    return RunFiles(
        name=str((card or {}).get("name") or run_dir.resolve().name),
        recipe_text=_read_text(run_dir / "recipe.yaml", problems),
        plan=_read_json(run_dir / "plan" / "plan.json", PlanSummary, problems),
        statistics=_read_statistics(run_dir / "plan" / "statistics.json", problems),
        bad_rows=_read_json_lines(run_dir / "plan" / "bad_rows.jsonl", problems),
        cleaning=_read_json(run_dir / "plan" / "cleaning.json", CleaningRecord, problems),
        starts=_of_kind("start", StartRecord, records, problems),
        steps=_of_kind("step", StepRecord, records, problems),
        saves=_of_kind("save", SaveRecord, records, problems),
        failed_saves=_of_kind("save_failed", FailedSave, records, problems),
        held_out=_of_kind("held_out", HeldOutRecord, records, problems),
        languages=_of_kind("languages", LanguagesRecord, records, problems),
        evaluations=evaluations,
        samples={
            path.stem.removeprefix("samples_"): _read_json_lines(path, problems)
            for path in sorted(newest.glob("samples_*.jsonl"))
        },
        card=card,
        problems=tuple(problems),
        averaged=averaged,
    )


def last_of_each_step(records: Sequence[Record]) -> list[Record]:
    """The newest record of each step, in order of steps: a resumed attempt overrules what was killed."""
    by_step = {record.step: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _refuse_other_folders(run_dir: Path) -> None:
    if not run_dir.is_dir():
        raise ValueError(f"{run_dir} is no directory; give the run directory, `run.dir` of the recipe")
    if not any((run_dir / part).exists() for part in RUN_PARTS):
        above = [parent for parent in run_dir.resolve().parents[:3] if (parent / "recipe.yaml").exists()]
        hint = f"did you mean {above[0]}?" if above else "give the run directory, `run.dir` of the recipe"
        raise ValueError(f"{run_dir} is no run directory: it holds none of {', '.join(RUN_PARTS)}; {hint}")


def _read_text(path: Path, problems: list[str]) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None


def _read_json(path: Path, shape: type[T], problems: list[str]) -> T | None:
    text = _read_text(path, problems)
    if text is None:
        return None
    try:
        # The standard library's parser, because a diverged run has NaN in its files.
        return msgspec.convert(json.loads(text), shape, strict=False)
    except ValueError as error:
        problems.append(f"{'/'.join(path.parts[-3:])} cannot be used: {error}")
        return None


def _read_statistics(path: Path, problems: list[str]) -> CorpusStatistics | None:
    try:
        return read_statistics(path) if path.is_file() else None
    except DataError as error:
        problems.append(str(error))
        return None


def _read_json_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file. A killed process can leave half a line behind; those are counted."""
    if not path.is_file():
        return []
    records, torn = [], 0
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line) if line.strip() else None
        except ValueError:
            torn += 1
            continue
        if isinstance(record, dict):
            records.append(record)
    if torn:
        problems.append(
            f"{torn} unreadable line{'s' * (torn > 1)} of {path.name} left out (a kill can cut a line short)"
        )
    return records


def _of_kind(kind: str, shape: type[T], records: list[dict[str, Any]], problems: list[str]) -> tuple[T, ...]:
    kept, reasons = [], []
    for record in records:
        if record.get("kind") == kind:
            try:
                kept.append(msgspec.convert(record, shape, strict=False))
            except msgspec.ValidationError as error:
                reasons.append(str(error))
    if reasons:
        problems.append(f"{len(reasons)} '{kind}' records of metrics.jsonl left out; the first: {reasons[0]}")
    return tuple(kept)


def _read_evaluations(folder: Path, suffix: str, problems: list[str]) -> dict[int, Results]:
    """By step, from the folders `STEP` + suffix."""
    names = [path.name for path in folder.glob(f"*{suffix}")] if folder.is_dir() else []
    steps = sorted(int(name.removesuffix(suffix)) for name in names if name.removesuffix(suffix).isdecimal())
    found = {step: _read_json(folder / f"{step}{suffix}" / "results.json", Results, problems) for step in steps}
    return {step: results for step, results in found.items() if results is not None}
