"""Saves that fail: what is left on disk, when they are tried again, and that nothing earlier is harmed."""

import asyncio
import contextlib
import resource
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.path import temporary_paths

import train.saver
from model.checkpoint import CheckpointError, find_checkpoint, list_steps, load_items
from model.checksums import find_damage
from train.config import CheckpointConfig
from train.saver import SaveEvent, Saver
from train.state import TrainState


def state_of(size, value=0.0):
    """Random numbers, which do not compress, of `size` kilobytes."""
    weights = np.random.default_rng(0).normal(size=(size, 256)).astype(np.float32)
    return TrainState(step=jnp.int32(0), params={"w": jnp.asarray(weights + value)}, opt_state=(jnp.ones(2),))


SMALL, LARGE = 10, 1000


@contextlib.contextmanager
def full_disk():
    """No file may grow past 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def open_saver(run_dir, **config):
    config = {"on_error": "retry", "retry_every_s": 0.05, **config}
    return Saver(run_dir, CheckpointConfig(**config), meta={}, plan_hash="plan")


def wait_for_events(saver):
    until = time.monotonic() + 30
    while time.monotonic() < until:
        if events := saver.take_events():
            return events
        time.sleep(0.01)
    raise AssertionError("no event")


def test_a_full_disk_leaves_no_half_written_step_and_no_step_is_pushed_out_by_it(tmp_path, one_device):
    """The failed save must not count among those that are kept: a good checkpoint would make room for none."""
    with open_saver(tmp_path, keep_last=2, keep_initial=False) as saver:
        for step in (1, 2):
            saver.save(state_of(SMALL), step=step, next_row=step)
            assert wait_for_events(saver) == [SaveEvent(step)]
        with full_disk():
            saver.save(state_of(LARGE), step=3, next_row=3)
            [event] = wait_for_events(saver)
        assert event.step == 3
        assert "could not be written" in event.error
        assert "File too large" in event.error
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]
        time.sleep(0.06)
        assert saver.wants_retry()
        saver.save(state_of(LARGE, 1.0), step=4, next_row=4)
        assert wait_for_events(saver) == [SaveEvent(4)]
        assert not saver.wants_retry()
        assert list_steps(tmp_path) == ([2, 4], [])
    assert find_checkpoint(tmp_path).step == 4
    for step in (2, 4):
        assert find_damage(tmp_path / "checkpoints" / str(step)) is None
    assert load_items(tmp_path / "checkpoints" / "4", {"data": None})["data"]["next_row"] == 4


def test_a_failed_save_is_noticed_without_another_save(tmp_path, one_device):
    """An error that only the next save raised would be hours late."""
    with pytest.raises(CheckpointError, match=r"File too large.*make room"), full_disk():
        saver = open_saver(tmp_path, on_error="stop").__enter__()
        saver.save(state_of(LARGE), step=1, next_row=1)
        wait_for_events(saver)


def test_the_last_save_waits_for_room(tmp_path, one_device, monkeypatch):
    waits = []
    with contextlib.ExitStack() as disk, open_saver(tmp_path, max_failures=4) as saver:
        disk.enter_context(full_disk())

        def sleep(seconds):
            waits.append(seconds)
            if len(waits) == 2:
                disk.close()

        monkeypatch.setattr(train.saver.time, "sleep", sleep)
        saver.save_last(state_of(LARGE), step=1, next_row=1, patient=True)
        assert [event.step for event in saver.take_events() if event.error is None] == [1]
    assert waits == [0.05, 0.05]
    assert list_steps(tmp_path) == ([1], [])


def test_a_last_save_that_waits_for_room_is_not_taken_for_a_stall(tmp_path, one_device, monkeypatch):
    """Retries of 20 x 60 seconds and more outlast train.stalled_after_s: the watch would end the run it waits for."""
    waits, signs = [], []
    with contextlib.ExitStack() as disk, open_saver(tmp_path, retry_every_s=25.0) as saver:
        disk.enter_context(full_disk())

        def sleep(seconds):
            waits.append(seconds)
            disk.close()

        monkeypatch.setattr(train.saver.time, "sleep", sleep)
        saver.save_last(state_of(LARGE), step=1, next_row=1, patient=True, on_wait=lambda: signs.append(len(waits)))
    assert waits == [10.0, 10.0, 5.0]
    assert signs == [1, 2, 3]


def test_the_last_step_is_not_saved_again_while_a_thread_may_still_write_into_its_folder(
    tmp_path, one_device, monkeypatch
):
    """Orbax's threads of a save that failed in another process go on: what they write late would end up among it."""
    ended, signs, probes = threading.Event(), [], []

    def probe(_folder):
        probes.append(ended.is_set())
        return "not now" if len(probes) == 1 else None

    def on_wait():
        signs.append(len(probes))
        if len(signs) == 3:
            ended.set()
            saver._abandoned[0].join()

    monkeypatch.setattr(train.saver, "_probe", probe)
    monkeypatch.setattr(train.saver.time, "sleep", lambda seconds: None)
    with open_saver(tmp_path) as saver:
        saver._abandoned = [threading.Thread(target=ended.wait, daemon=True)]
        saver._abandoned[0].start()
        saver.save_last(state_of(SMALL), step=1, next_row=1, patient=True, on_wait=on_wait)
    assert probes == [False, True]
    assert signs == [1, 1, 1], "a wait without signs is taken for a stall"
    assert list_steps(tmp_path) == ([1], [])


def test_a_run_that_is_told_to_stop_does_not_wait_for_room(tmp_path, one_device):
    """The seconds before a machine is taken away are few; and its state is not saved: that is no exit to restart on."""
    message = r"step 1 is not saved, and the run was told to stop: .*File too large"
    with pytest.raises(CheckpointError, match=message), full_disk(), open_saver(tmp_path) as saver:
        saver.save_last(state_of(LARGE), step=1, next_row=1, patient=False)


def test_a_folder_that_cannot_be_written_is_noticed_before_anything_is(tmp_path, one_device, monkeypatch):
    """Permission lost: several processes would wait for one another for minutes inside of Orbax."""
    with open_saver(tmp_path) as saver:
        folder = tmp_path / "checkpoints"
        folder.rename(tmp_path / "away")
        folder.write_text("not a folder")
        monkeypatch.setattr(saver._checkpointer, "save_checkpointables_async", lambda *_: pytest.fail("tried"))
        saver.save(state_of(SMALL), step=1, next_row=1)
        [event] = saver.take_events()
        assert "NotADirectoryError" in event.error
        folder.unlink()
        (tmp_path / "away").rename(folder)
        saver.save(state_of(SMALL), step=2, next_row=2)
    assert list_steps(tmp_path) == ([2], [])


def test_no_clean_up_of_an_earlier_checkpointer_removes_what_a_later_one_writes(tmp_path, one_device, monkeypatch):
    """Orbax clears away half-written steps in a thread that closing does not wait for: one that came late took the step
    that was being written for such a one (no ArrayMetadata found), or the whole of it, without any error."""
    clean_up = temporary_paths.cleanup_temporary_paths

    async def clean_up_late(folder, **options):
        is_late, until = next(first, False), time.monotonic() + 10
        while is_late and time.monotonic() < until and not any(tmp_path.glob("checkpoints/2*/params*")):
            await asyncio.sleep(0.001)
        await clean_up(folder, **options)

    first = iter([True])
    monkeypatch.setattr(temporary_paths, "cleanup_temporary_paths", clean_up_late)
    with open_saver(tmp_path) as saver:
        probes = iter(["not now", None])
        monkeypatch.setattr(train.saver, "_probe", lambda _: next(probes))
        saver.save(state_of(SMALL), step=1, next_row=1)
        saver.save(state_of(SMALL), step=2, next_row=2)
        assert wait_for_events(saver) == [SaveEvent(1, error="not now")]
    assert [event.error for event in saver.take_events()] == [None]
    assert list_steps(tmp_path) == ([2], [])
    assert find_damage(tmp_path / "checkpoints" / "2") is None


def test_what_a_failed_save_left_out_of_reach_is_cleared_away_before_the_next(tmp_path, one_device, monkeypatch):
    """Moved back, it would be listed as half written for as long as the run lasts."""
    with open_saver(tmp_path) as saver:
        folder = tmp_path / "checkpoints"
        (folder / "1.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
        folder.rename(tmp_path / "away")
        saver.save(state_of(SMALL), step=1, next_row=1)
        (tmp_path / "away").rename(folder)
        saver.save(state_of(SMALL), step=2, next_row=2)
    assert list_steps(tmp_path) == ([2], [])


def test_checksums_that_cannot_be_written_leave_a_whole_checkpoint_and_a_notice(tmp_path, one_device, monkeypatch):
    def write(step_dir):
        raise OSError("No space left on device")

    monkeypatch.setattr(train.saver, "write_checksums", write)
    with open_saver(tmp_path) as saver:
        saver.save(state_of(SMALL), step=1, next_row=1)
        [event] = wait_for_events(saver)
    assert event == SaveEvent(1, notice="its checksums could not be written: No space left on device")
    assert list_steps(tmp_path) == ([1], [])
