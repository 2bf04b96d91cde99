"""Trackers: a missing package is an error at once, and a resumed run goes on where it was."""

import importlib.machinery
import sys
from types import ModuleType

import msgspec
import pytest

from train.config import TrainConfig
from train.trackers import TensorBoard, check_trackers, open_trackers

CONFIG = TrainConfig(steps=2, batch_rows=2, trackers=("tensorboard", "wandb", "trackio"), tracker_project="mine")


class FakeRun:
    """A run of either package, which remembers what it was told."""

    def __init__(self, **given):
        self.given, self.logged, self.axes, self.is_finished = given, [], [], False

    def define_metric(self, name, step_metric):
        self.axes.append((name, step_metric))

    def log(self, scalars, step=None):
        self.logged.append((step, scalars))

    def finish(self):
        self.is_finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that were started, by package; both packages are there."""
    started = {"wandb": [], "trackio": []}
    for name, of_package in started.items():
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.init = lambda runs=of_package, **given: runs.append(FakeRun(**given)) or runs[-1]
        monkeypatch.setitem(sys.modules, name, module)
    return started


def log_once(run_dir, step):
    trackers = open_trackers(CONFIG, run_dir, about={"recipe": {"seed": 1}})
    for tracker in trackers:
        tracker.log(step, {"train/loss": 2.0})
        tracker.close()
    return trackers


def test_every_tracker_gets_the_scalars_and_is_closed(runs, tmp_path):
    check_trackers(CONFIG.trackers)
    assert isinstance(log_once(tmp_path, 3)[0], TensorBoard)
    ((wandb_run,), (trackio_run,)) = runs.values()
    assert wandb_run.logged == [(None, {"step": 3, "train/loss": 2.0})]
    assert wandb_run.axes == [("*", "step")]
    assert trackio_run.logged == [(3, {"train/loss": 2.0})]
    assert wandb_run.is_finished and trackio_run.is_finished
    assert {run.given["project"] for run in (wandb_run, trackio_run)} == {"mine"}
    assert wandb_run.given["config"] == {"recipe": {"seed": 1}}


def test_a_resumed_run_goes_on_in_the_same_run_of_each_tracker(runs, tmp_path):
    """Trackers that make a new run for every attempt leave a curve in as many pieces as there were kills."""
    log_once(tmp_path, 1)
    log_once(tmp_path, 2)
    for name, key in (("wandb", "id"), ("trackio", "name")):
        first, second = runs[name]
        assert first.given[key] == second.given[key]
        assert first.given["resume"] == second.given["resume"] == "allow"


def test_two_runs_of_one_name_do_not_share_a_curve(runs, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "run").mkdir(parents=True)
        log_once(tmp_path / parent / "run", 1)
    for name, key in (("wandb", "id"), ("trackio", "name")):
        assert len({run.given[key] for run in runs[name]}) == 2


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_trackers(("tensorboard",))
    with pytest.raises(ValueError, match=r"names wandb.*not installed; run pip install 'polytune\[wandb\]', or take"):
        check_trackers(("tensorboard", "wandb"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trackers": ["tensorboard", "tensorboard"]}, "names one twice"),
        ({"trackers": ["tensorbord"]}, "Invalid enum value 'tensorbord'"),
        ({"profile": [5, 4]}, "ends at step 4, before it starts at 5"),
        ({"profile": [11, 12]}, r"starts at step 11, but train.steps=10: nothing would be traced; use a step up to 10"),
        ({"profile": [0, 2]}, "Expected `int` >= 1"),
        ({"peak_flops_per_s": 0}, "Expected `float` > 0"),
    ],
)
def test_what_cannot_be_seen_is_refused_before_training(given, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert({"steps": 10, "batch_rows": 2, **given}, TrainConfig)
