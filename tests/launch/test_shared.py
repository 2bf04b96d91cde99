"""What processes of a run must have in common is checked, and said in words a user can act on."""

import jax
import pytest

import launch.shared as shared
from launch.config import RecipeError
from launch.shared import check_alike, find_marks

TOLD = {"name": ".seen-by-all-1", "host": "node0", "run.dir": "/theirs/run", "data.store": "/theirs/store"}


def test_a_folder_that_is_not_shared_is_named_with_both_hosts_views(tmp_path):
    (tmp_path / TOLD["name"]).touch()
    find_marks({"run.dir": tmp_path}, TOLD, patience_s=0)
    (tmp_path / "own").mkdir()
    message = r"data.store: process 0 on .* sees another .*own than process 0 on node0 does \(/theirs/store\)"
    with pytest.raises(RecipeError, match=message):
        find_marks({"run.dir": tmp_path, "data.store": tmp_path / "own"}, TOLD, patience_s=0)


def test_a_process_that_would_train_something_else_is_refused(monkeypatch):
    """Each would wait in another program's collective, for ever, or compute nonsense with the others."""
    theirs = {"plan": "aa", "train.steps": "5", "jax": "0.10.2", "mesh.fsdp": "-1"}
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(shared, "tell_all", lambda name, make: theirs)
    monkeypatch.setattr(shared, "describe_job", lambda job: job)
    check_alike(dict(theirs))
    message = "jax: 0.10.2 in process 0, 0.10.1 here; plan: aa in process 0, bb here. Start every process with the same"
    with pytest.raises(RecipeError, match=message):
        check_alike({**theirs, "plan": "bb", "jax": "0.10.1"})
