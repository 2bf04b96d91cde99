"""The first failure of a run is the one that every process names."""

import json
import socket

import jax
import pytest

import launch.together as together
from launch.together import ALIVE, FAILURE, Failure, _Watch, exit_code_of, fail_together


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
    return _Watch(60)


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
    watch._store.values |= {f"{ALIVE}0": "7", f"{ALIVE}2": "9"}
    dir_get = watch._store.key_value_dir_get

    def beating(prefix):
        watch._store.values[f"{ALIVE}0"] += "."
        return dir_get(prefix)

    watch._store.key_value_dir_get = beating
    failure = watch._explain(jax.errors.JaxRuntimeError("Connection closed by peer"))
    assert (failure.process, failure.code) == (2, 1)
    assert "killed, out of memory, stopped, or its host is gone" in failure.what


def test_an_error_of_the_accelerator_is_its_own_when_all_others_live(watch):
    failure = watch._explain(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert failure.process == 1
    assert failure.what == "JaxRuntimeError: RESOURCE_EXHAUSTED: out of memory"


@pytest.mark.parametrize(
    ("error", "code"), [(ValueError(), 2), (OSError(), 2), (KeyError(), 1), (KeyboardInterrupt(), 130)]
)
def test_no_failure_ends_as_success(error, code):
    assert exit_code_of(error) == code


def test_a_process_alone_fails_as_ever():
    with pytest.raises(KeyError), fail_together():
        raise KeyError
