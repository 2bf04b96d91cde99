"""Of several processes, one that cannot write its part of a checkpoint tells the others at once."""

import jax
import pytest
from orbax.checkpoint import v1 as ocp

import train.save_barrier
from model.checkpoint import checkpoint_context
from train.save_barrier import SaveBarrier, use_barrier


class FakeStore:
    """What two processes share; nobody waits."""

    def __init__(self):
        self.values, self.met = {}, []

    def key_value_set(self, key, value, allow_overwrite=False):
        self.values[key] = value

    def key_value_dir_get(self, prefix):
        return [(key, value) for key, value in self.values.items() if key.startswith(prefix)]

    def wait_at_barrier(self, name, timeout_ms):
        self.met.append((name, timeout_ms))


@pytest.fixture
def shared(monkeypatch):
    """The store, seen by process 1 of 2."""
    shared = FakeStore()
    monkeypatch.setattr(train.save_barrier, "store", lambda: shared)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    return shared


def test_a_process_that_fails_waits_for_none_and_tells_all(shared):
    """Orbax meets the others once more while it clears up: they are elsewhere by then, each for 20 minutes."""
    own, others, next_one = SaveBarrier("save-1", repr), SaveBarrier("save-1", repr), SaveBarrier("save-2", repr)
    own(key="written.6", timeout_ms=77)
    assert shared.met == [("polytune/save-1/written.6", 77)]
    assert own.problem is None and not others.has_failed()
    with pytest.raises(OSError, match="disk full"):
        try:
            raise OSError("disk full")
        finally:
            own(key="clearing_up", timeout_ms=77)
    assert len(shared.met) == 1, "it waited"
    assert own.problem == "OSError('disk full')"
    assert others.has_failed() and others.problem is None, "what failed elsewhere is no error of this process"
    assert not next_one.has_failed(), "the next checkpointer begins with a clean slate"


def test_orbax_meets_at_our_barrier(shared):
    """Its newer interface hides the option; if it goes by another way one day, half an hour of waiting is back."""
    context = checkpoint_context()
    use_barrier(context, SaveBarrier("save-1", repr))
    options = ocp.Context(context).async_options.v0()  # what a checkpointer makes of the context it is given
    options.barrier_sync_fn(key="written.6", timeout_ms=5)
    assert shared.met == [("polytune/save-1/written.6", 5)]
    assert options.timeout_secs == ocp.Context().async_options.timeout_secs
