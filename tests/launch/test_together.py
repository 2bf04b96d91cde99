"""The first failure of a run is the one that every process names."""

import itertools
import json
import socket
import threading
import time

import jax
import pytest

import launch.together as together
from launch.together import ALIVE, FAILURE, SEEN, Beat, Failure, Pace, _Watch, exit_code_of, fail_together
from train.stage import Stage


class FakeStore:
    """Key-value store of one process, that fails as JAX's does."""

    def __init__(self):
        self.values = {}

    def key_value_set(self, key, value, allow_overwrite=False):
        if key in self.values and not allow_overwrite:
            raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: key {key} already exists.")
        self.values[key] = value

    def key_value_try_get(self, key):
        if key not in self.values:
            raise jax.errors.JaxRuntimeError(f"NOT_FOUND: Config key {key} not found.")
        return self.values[key]

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]


@pytest.fixture
def watch(monkeypatch):
    """The watch of process 1 of 4, not running."""
    shared = FakeStore()
    monkeypatch.setattr(together, "store", lambda: shared)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(together, "SUSPECT_S", 0.2)
    monkeypatch.setattr(together, "POLL_S", 0.05)
    return _Watch(60, Pace(Stage(), 1.0))


def beat_of(watch, process, beat):
    watch._store.values[f"{ALIVE}{process}"] = json.dumps(beat)


OTHER = Failure(3, "node3", 2, "DataError: a shard is damaged")


def test_a_failure_is_told_with_its_process_host_and_code(watch):
    told = watch._post(watch._explain(ValueError("bad data")))
    assert told == Failure(1, socket.gethostname(), 2, "ValueError: bad data")
    assert Failure(*json.loads(watch._store.values[FAILURE])) == told


def test_only_the_first_failure_counts(watch):
    watch._store.key_value_set(FAILURE, json.dumps(OTHER))
    assert watch._post(watch._explain(ValueError("later"))) == OTHER


def test_a_broken_connection_is_not_taken_for_the_failure_that_broke_it(watch):
    """The others of a process that fails see their collectives fail: those errors explain nothing."""
    broken = jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    watch._store.key_value_set(FAILURE, json.dumps(OTHER))
    assert watch._explain(broken) == OTHER


def test_a_process_that_went_without_a_word_is_named_once_a_connection_breaks(watch):
    beat_of(watch, 0, Beat(7, "node0"))
    beat_of(watch, 2, Beat(9, "node2", (17, 0), "loads the batch of step 17", 3.0))
    dir_get, beats = watch._store.key_value_dir_get, itertools.count()

    def beating(prefix):
        beat_of(watch, 0, Beat(next(beats), "node0"))
        return dir_get(prefix)

    watch._store.key_value_dir_get = beating
    failure = watch._explain(jax.errors.JaxRuntimeError("Connection closed by peer"))
    assert (failure.process, failure.host, failure.code) == (2, "node2", 1)
    assert "when last heard of, it loads the batch of step 17, for 3 s by now" in failure.what
    assert "killed, out of memory, stopped, or its host is gone" in failure.what


def test_an_error_of_the_accelerator_is_its_own_when_all_others_live(watch):
    failure = watch._explain(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert failure.process == 1
    assert failure.what == "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"


def test_of_a_hung_job_the_process_that_is_behind_is_named_not_one_that_waits_for_it(watch):
    """All sit in a collective but process 2, whose loader hangs: those that wait reach their limit first."""
    beat_of(watch, 0, Beat(5, "node0", (19, 2), "computes step 18", 61.0, True))
    beat_of(watch, 1, Beat(5, "node1", (19, 2), "computes step 18", 61.0, True))
    beat_of(watch, 2, Beat(5, "node2", (18, 0), "loads the batch of step 18", 60.0, False))
    beat_of(watch, 3, Beat(5, "node3"))
    assert watch._find_silent(60) is None
    failure = watch._find_stalled()
    assert (failure.process, failure.host, failure.code, failure.has_stalled) == (2, "node2", 1, True)
    assert "it loads the batch of step 18, for 60 s by now; meanwhile process 0 computes step 18" in failure.what
    beat_of(watch, 0, Beat(6, "node0", (19, 2), "computes step 18", 2.0))
    beat_of(watch, 1, Beat(6, "node1", (19, 2), "computes step 18", 2.0))
    assert watch._find_silent(60) is None
    assert watch._find_stalled() is None


def test_a_process_that_compiles_may_take_four_times_as_long(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stage = Stage()
    pace = Pace(stage, 10.0)
    assert not pace.beat(1).is_stalled
    stage.dispatches(1, compiles=True)
    now[0] += 39
    assert not pace.beat(2).is_stalled
    now[0] += 2
    assert (pace.beat(3).what, pace.beat(3).is_stalled) == ("compiles step 1", True)
    stage.loads(2)
    now[0] += 11
    assert pace.beat(4).is_stalled
    assert not Pace(stage, None).beat(4).is_stalled
    stage.ends()
    assert not pace.beat(5).is_stalled


class Ended(BaseException):
    """In place of the process's end."""


@pytest.mark.parametrize("answers", [True, False])
def test_process_0_leaves_after_the_others_have_read_why_it_fails(watch, monkeypatch, capsys, answers):
    """It keeps the store: JAX aborts who is left, with C++ stacks in place of the reason. One that never answers costs
    ten seconds, not for ever."""
    monkeypatch.setattr(together, "FAREWELL_S", 0.6)
    monkeypatch.setattr(watch, "_index", 0)
    ended = []

    def end(code):
        ended.append((code, time.monotonic()))
        raise Ended

    monkeypatch.setattr(together, "_exit", end)
    told = threading.Event()

    def answer():
        while watch._read_failure() is None:
            time.sleep(0.01)
        time.sleep(0.2)
        for index in (1, 2, 3) if answers else (1, 2):
            watch._store.key_value_set(f"{SEEN}{index}", "")
        told.set()

    began = time.monotonic()
    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(Ended):
        watch.fail(ValueError("process 0 is at fault"))
    [(code, at)] = ended
    assert code == 2
    assert told.is_set(), "it has left before the others knew"
    assert (at - began < 0.6) == answers
    assert Failure(*json.loads(watch._store.values[FAILURE])).what == "ValueError: process 0 is at fault"
    assert "process 0 of 4 failed: process 0 is at fault" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError(), 2), (OSError(), 2), (KeyError(), 1), (KeyboardInterrupt(), 130)]
)
def test_no_failure_ends_as_success(error, code):
    assert exit_code_of(error) == code


def test_a_process_alone_fails_as_ever():
    with pytest.raises(KeyError), fail_together():
        raise KeyError
