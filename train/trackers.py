"""Where scalars go besides `metrics.jsonl`: TensorBoard, Weights & Biases, trackio. Process 0 alone opens any."""

import importlib.util
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tensorboardX import SummaryWriter

from train.config import TrackerName, TrainConfig

RUNS_FILE = "trackers.json"
"""In the run directory: which run of each tracker is this run, so that a resumed one goes on there."""


@runtime_checkable
class Tracker(Protocol):
    """One place that scalars are sent to."""

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Sends scalars of a step; a step may come several times, and again after a resume."""
        ...

    def close(self) -> None:
        """Sends what is left."""
        ...


class TensorBoard:
    """Event files in `RUN/tensorboard`."""

    def __init__(self, run_dir: Path):
        self._board = SummaryWriter(str(run_dir / "tensorboard"), flush_secs=10)

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Raises OSError where its writer has died."""
        for name, value in scalars.items():
            # Its writer is a thread with a bounded queue: once that has died, an add would wait forever.
            if not self._is_alive():
                raise OSError(
                    "TensorBoard's writer has stopped, most likely because the disk is full; make room and run the "
                    "same command again, or set train.trackers=[]"
                )
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes, unless the writer has died."""
        if self._is_alive():
            self._board.close()

    def _is_alive(self) -> bool:
        board: Any = self._board
        return board.file_writer.event_writer._worker.is_alive()


class WandB:
    """A run at Weights & Biases, or what `WANDB_MODE=offline` leaves in `RUN/wandb`."""

    def __init__(self, run_dir: Path, *, project: str, run_id: str, config: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            project=project, id=run_id, name=run_dir.resolve().name, resume="allow", dir=str(run_dir),
            config=dict(config),
        )  # fmt: skip
        # Its own count of steps only rises, and would drop the steps that a resumed run does again.
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars against our step."""
        self._run.log({"step": step, **scalars})

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


class Trackio:
    """A run in trackio's local database, or the Space that its own settings name."""

    def __init__(self, run_dir: Path, *, project: str, run_id: str, config: Mapping[str, Any]):
        import trackio  # pyright: ignore[reportMissingImports]

        name = f"{run_dir.resolve().name}-{run_id}"
        self._run = trackio.init(project=project, name=name, resume="allow", embed=False, config=dict(config))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Scalars against our step."""
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


REMOTE: dict[TrackerName, Callable[..., Tracker]] = {"wandb": WandB, "trackio": Trackio}


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raises ValueError, before anything is prepared, for a tracker whose package is not installed."""
    for name in names:
        if name in REMOTE and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"train.trackers names {name}, but the package {name} is not installed; run "
                f"pip install 'polytune[{name}]', or take {name} out of train.trackers"
            )


def open_trackers(config: TrainConfig, run_dir: Path, *, about: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run, each going on with the run it had. `about` is told to those that keep a configuration."""
    opened: list[Tracker] = []
    for name in config.trackers:
        if name == "tensorboard":
            opened.append(TensorBoard(run_dir))
            continue
        run_id = _run_id(run_dir, name)
        opened.append(REMOTE[name](run_dir, project=config.tracker_project, run_id=run_id, config=about))
    return opened


def _run_id(run_dir: Path, name: str) -> str:
    """The id this run has at a tracker; made, and written down before it is used, the first time."""
    path = run_dir / RUNS_FILE
    known: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if name not in known:
        known[name] = secrets.token_hex(4)
        path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return known[name]
