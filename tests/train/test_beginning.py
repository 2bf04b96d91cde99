"""Where a run begins after its checkpoints were damaged or deleted: at an older one, or not at all."""

import shutil

import jax.numpy as jnp
import pytest

from model.checkpoint import CheckpointError, list_steps
from train.beginning import find_beginning
from train.checkpoint import Damaged
from train.config import CheckpointConfig
from train.metrics import MetricsWriter
from train.saver import Saver
from train.state import TrainState


@pytest.fixture
def run_dir(tmp_path, one_device):
    """A run of one attempt that has saved steps 0, 5 and 10, and said so in its log."""
    state = TrainState(step=jnp.int32(0), params={"w": jnp.ones(3)}, opt_state=(jnp.ones(2),))
    writer = MetricsWriter(tmp_path, attempt=1, languages=("",), language_every=9)
    writer.write_start(0, {})
    with Saver(tmp_path, CheckpointConfig(keep_last=2), meta={}, plan_hash="plan") as saver:
        for step in (0, 5, 10):
            saver.save(state, step=step, next_row=step)
            writer.write_event("saved", step)
    writer.close()
    return tmp_path


def steps_dir(run_dir, step):
    return run_dir / "checkpoints" / str(step)


def test_a_run_begins_at_its_newest_checkpoint(run_dir):
    beginning = find_beginning(run_dir)
    assert (beginning.newest, beginning.attempt, beginning.damaged, beginning.is_unverified) == (10, 2, (), False)


def test_a_directory_without_a_run_is_a_fresh_one(tmp_path):
    beginning = find_beginning(tmp_path / "nothing")
    assert (beginning.newest, beginning.attempt, beginning.set_aside) == (None, 1, ())


def test_a_truncated_file_of_the_newest_is_named_and_the_one_before_gone_on_from(run_dir):
    path = steps_dir(run_dir, 10) / "params" / "manifest.ocdbt"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-5])
    beginning = find_beginning(run_dir)
    what = f"params/manifest.ocdbt has {size - 5} bytes, {size} were written"
    assert beginning.damaged == (Damaged(str(run_dir / "damaged" / "10"), what),)
    assert beginning.newest == 5
    assert list_steps(run_dir) == ([0, 5], [])


def test_a_deleted_newest_checkpoint_is_made_again_from_the_one_before(run_dir):
    shutil.rmtree(steps_dir(run_dir, 10))
    assert find_beginning(run_dir).newest == 5


def test_a_run_whose_checkpoints_are_all_gone_never_starts_anew(run_dir):
    """Days of training would be made again, silently, and the old log go on as if nothing had happened."""
    shutil.rmtree(run_dir / "checkpoints")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint left, though step 10 was saved.*another run.dir"):
        find_beginning(run_dir)


def test_a_run_whose_checkpoints_are_all_damaged_never_starts_anew(run_dir):
    for step in (0, 5, 10):
        (steps_dir(run_dir, step) / "data" / "data.json").unlink()
    with pytest.raises(CheckpointError, match=r"no whole checkpoint left \(.*damaged/10: data/data.json is missing; "):
        find_beginning(run_dir)
    (run_dir / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="no whole checkpoint left"):
        find_beginning(run_dir)
    assert sorted(path.name for path in (run_dir / "damaged").iterdir()) == ["0", "10", "5"]


def test_a_run_killed_before_its_first_save_was_whole_starts_anew(run_dir):
    """Nothing was saved, so nothing is lost."""
    (run_dir / "metrics.jsonl").unlink()
    for step in (0, 5, 10):
        (steps_dir(run_dir, step) / "commit_success.txt").unlink()
    beginning = find_beginning(run_dir)
    assert (beginning.newest, len(beginning.set_aside)) == (None, 3)


def test_a_checkpoint_without_checksums_is_gone_on_from_and_said_to_be_unverified(run_dir):
    (steps_dir(run_dir, 10) / "checksums.json").unlink()
    beginning = find_beginning(run_dir)
    assert (beginning.newest, beginning.is_unverified) == (10, True)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"files": {"a": 3}}'])
def test_checksums_that_cannot_be_read_are_damage(run_dir, content):
    (steps_dir(run_dir, 10) / "checksums.json").write_bytes(content)
    beginning = find_beginning(run_dir)
    assert beginning.newest == 5
    assert "checksums.json cannot be read" in beginning.damaged[0].what


def test_what_was_damaged_before_is_not_overwritten_by_what_is_damaged_now(run_dir):
    for text in ("first", "second"):
        if text == "second":
            shutil.copytree(steps_dir(run_dir, 5), steps_dir(run_dir, 10))
        (steps_dir(run_dir, 10) / "meta" / "data.json").write_text(text)
        find_beginning(run_dir)
    found = {path.name: (path / "meta" / "data.json").read_text() for path in (run_dir / "damaged").iterdir()}
    assert found == {"10": "first", "10-2": "second"}
