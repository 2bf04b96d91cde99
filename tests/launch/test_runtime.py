import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from launch.config import RecipeError
from launch.runtime import cache_dir, lock_run_dir, set_up_process, use_mesh
from model.parallel import MeshConfig


def test_a_run_directory_is_made_and_held_by_one_process(tmp_path):
    run_dir = tmp_path / "a" / "run"
    with lock_run_dir(run_dir):
        assert run_dir.is_dir()
        message = "another process is training in .*run; wait for it, stop it, or use another run.dir"
        with pytest.raises(RecipeError, match=message), lock_run_dir(run_dir):
            pytest.fail("two trainings in one directory")
    with lock_run_dir(run_dir):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    program = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB); "
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RecipeError, match="another process"), lock_run_dir(tmp_path):
            pytest.fail("held by another process")
        process.kill()
        process.wait()
    with lock_run_dir(tmp_path):
        pass


def test_an_error_inside_releases_the_lock(tmp_path):
    with pytest.raises(KeyError), lock_run_dir(tmp_path):
        raise KeyError
    with lock_run_dir(tmp_path):
        pass


def test_a_run_directory_that_cannot_be_made_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"run.dir .*file/run cannot be written .*choose another run.dir"
    with pytest.raises(RecipeError, match=message), lock_run_dir(tmp_path / "file" / "run"):
        pytest.fail("there is no such directory")


def test_the_compilation_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYTUNE_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    set_up_process()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")
    assert logging.getLogger("absl").level == logging.CRITICAL
    monkeypatch.delenv("POLYTUNE_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "polytune"
    monkeypatch.setenv("POLYTUNE_CACHE", "")
    assert cache_dir() == Path.home() / ".cache" / "polytune", os.environ["POLYTUNE_CACHE"]


def test_the_mesh_is_entered_and_left():
    with use_mesh(MeshConfig(fsdp=-1, tensor=2)) as mesh:
        assert (
            dict(jax.sharding.get_mesh().shape)
            == dict(mesh.shape)
            == {"data": 1, "fsdp": 4, "expert": 1, "sequence": 1, "tensor": 2}
        )
    assert jax.sharding.get_mesh().empty
