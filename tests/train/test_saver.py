"""Full checkpoints on disk: the bits that come back, on any mesh, and what is refused."""

import gc
import json
import resource
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import AXES, OPTIM, TOY, assert_equal_trees, copy_to_host, mesh_of, place_state

from model.checkpoint import (
    CheckpointError,
    CheckpointPath,
    find_checkpoint,
    list_steps,
    load_params,
    read_meta,
)
from model.transformer import abstract
from train.checkpoint import check_disk, find_whole, restore_newest, set_aside_incomplete
from train.config import CheckpointConfig
from train.optim import make_optimizer
from train.saver import Saver
from train.state import TrainState, abstract_state

TX = make_optimizer(OPTIM, 10)
META = {
    "model": msgspec.to_builtins(TOY),
    "languages": ["", "ckb", "zh-Hant"],
    "versions": {"jax": "0"},
    "none": None,
}


def make_state(params, seed=0):
    """A state all of whose arrays differ, moments and counts too."""
    state, rng = place_state(params, TX), np.random.default_rng(seed)

    def fill(leaf):
        return jax.device_put(leaf + np.asarray(rng.uniform(1, 9, leaf.shape), leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, state)


def open_saver(run_dir, **config):
    return Saver(run_dir, CheckpointConfig(**config), meta=META, plan_hash="plan")


def save_steps(run_dir, state, steps, **config):
    with open_saver(run_dir, **config) as saver:
        for step in steps:
            saver.save(state, step=step, next_row=step * 8)


@pytest.fixture(scope="module")
def saved_run(toy_params, tmp_path_factory):
    """A run with steps 0 and 20 saved on a mesh of eight devices, and the state it saved."""
    run_dir = tmp_path_factory.mktemp("saved")
    with jax.set_mesh(mesh_of((4, 2))):
        state = make_state(toy_params)
        save_steps(run_dir, state, [0, 20])
        return run_dir, copy_to_host(state)


@pytest.fixture
def run_copy(saved_run, tmp_path):
    """The saved run in a directory of its own, to be damaged."""
    return shutil.copytree(saved_run[0], tmp_path / "run")


def restore(run_dir, cfg=TOY, plan_hash="plan"):
    return restore_newest(run_dir, abstract_state(cfg, AXES, TX), plan_hash=plan_hash)


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (4, 2)], ids=str)
def test_a_state_comes_back_to_the_bit_on_any_mesh(saved_run, shape):
    run_dir, saved = saved_run
    with jax.set_mesh(mesh_of(shape)):
        state, next_row = restore(run_dir)
        wanted = abstract_state(TOY, AXES, TX)
    assert (int(state.step), next_row) == (20, 160)
    assert_equal_trees(copy_to_host((state.params, state.opt_state)), (saved.params, saved.opt_state))
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, state.params)
    assert specs == jax.tree.map(lambda leaf: leaf.sharding.spec, wanted.params)
    assert {leaf.sharding.mesh.size for leaf in jax.tree.leaves(state.params)} == {shape[0] * shape[1]}


def test_a_model_is_read_without_optimizer_or_data(run_copy, saved_run, one_device):
    """Evaluation reads `params` and `meta` alone, so a checkpoint published without the rest is whole."""
    for item in ("opt_state", "data"):
        shutil.rmtree(run_copy / "checkpoints" / "20" / item)
    found = find_checkpoint(run_copy)
    assert read_meta(found) == json.loads(json.dumps({"format": 2, "step": 20, **META}))
    assert_equal_trees(copy_to_host(load_params(found, abstract(TOY, AXES))), saved_run[1].params)


def test_the_newest_complete_checkpoint_is_found_from_run_or_step(saved_run):
    run_dir, _ = saved_run
    newest = CheckpointPath(run_dir=run_dir, step=20, path=run_dir / "checkpoints" / "20")
    assert find_checkpoint(run_dir) == find_checkpoint(str(newest.path)) == newest
    assert find_checkpoint(run_dir / "checkpoints" / "0").step == 0


@pytest.mark.parametrize("cut", ["commit_success.txt", "params/commit_success.txt", "meta", "params"])
def test_a_save_that_never_finished_is_refused_and_the_one_before_found(run_copy, cut, one_device):
    path = run_copy / "checkpoints" / "20" / cut
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=r"20 is half written .* use one of \[0\]"):
        find_checkpoint(run_copy / "checkpoints" / "20")
    assert find_checkpoint(run_copy).step == 0
    state, next_row = restore(run_copy)
    assert (int(state.step), next_row) == (0, 0)


def test_a_half_written_step_is_set_aside_and_can_be_saved_again(run_copy, toy_params, one_device):
    (run_copy / "checkpoints" / "20" / "commit_success.txt").unlink()
    assert set_aside_incomplete(run_copy) == [run_copy / "incomplete" / "20"]
    save_steps(run_copy, make_state(toy_params, seed=5), [20])
    assert list_steps(run_copy) == ([0, 20], [])


@pytest.fixture
def abandoned_reads(monkeypatch):
    """Swallows what Orbax's threads raise into an event loop that is closed once a first read has failed."""
    raised = []
    monkeypatch.setattr(sys, "unraisablehook", raised.append)
    yield
    count = -1
    while count != len(raised):
        count = len(raised)
        gc.collect()
        time.sleep(0.3)


@pytest.mark.parametrize("item", ["params", "opt_state"])
def test_a_truncated_array_file_is_an_error_that_names_the_checkpoint(run_copy, item, one_device, abandoned_reads):
    files = (run_copy / "checkpoints" / "20" / item).rglob("d/*")
    largest = max(files, key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"checkpoints/20 .*damaged: delete it and use one of \[0\]"):
        restore(run_copy)


def forget_checksums(run_dir):
    """As an earlier version would have written the run."""
    for path in (run_dir / "checkpoints").glob("*/checksums.json"):
        path.unlink()


@pytest.mark.parametrize("content", [b"", b'{"format": 2, "st', b"\xff"])
def test_a_damaged_meta_is_an_error_that_names_the_checkpoint(run_copy, content):
    (run_copy / "checkpoints" / "20" / "meta" / "data.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoints/20 is damaged: meta/data.json has .* use one of \[0\]"):
        read_meta(find_checkpoint(run_copy))
    forget_checksums(run_copy)
    with pytest.raises(CheckpointError, match=r"checkpoints/20 could not be read"):
        read_meta(find_checkpoint(run_copy))


def test_a_bit_that_has_flipped_in_the_weights_is_not_evaluated(run_copy, one_device):
    """It would only show as a worse score."""
    flip_a_bit(largest_file(run_copy / "checkpoints" / "20" / "params"))
    with pytest.raises(CheckpointError, match=r"20 is damaged: params/.* holds other bytes than were written"):
        load_params(find_checkpoint(run_copy), abstract(TOY, AXES))


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_whole_checkpoint_is_found_and_damaged_ones_are_set_aside(run_copy, one_device):
    flip_a_bit(largest_file(run_copy / "checkpoints" / "20" / "opt_state"))
    newest, [(path, what)] = find_whole(run_copy)
    assert (newest, path) == (0, str(run_copy / "damaged" / "20"))
    assert "opt_state/" in what
    assert list_steps(run_copy) == ([0], [])
    (run_copy / "checkpoints" / "0" / "data" / "data.json").unlink()
    newest, [(path, what)] = find_whole(run_copy)
    assert (newest, what) == (None, "data/data.json is missing")


@pytest.mark.parametrize("cut", ["data/data.json", "opt_state/_METADATA", "params/_METADATA"])
def test_a_checkpoint_without_checksums_passes_if_what_describes_it_can_be_read(run_copy, cut, one_device):
    """It was killed between commit and checksums, or an earlier version wrote it."""
    forget_checksums(run_copy)
    assert find_whole(run_copy) == (20, [])
    (run_copy / "checkpoints" / "20" / cut).write_bytes(b"{")
    newest, [(path, _)] = find_whole(run_copy)
    assert (newest, path) == (0, str(run_copy / "damaged" / "20"))


def test_a_format_of_another_version_is_refused(run_copy):
    forget_checksums(run_copy)
    path = run_copy / "checkpoints" / "20" / "meta" / "data.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 9'))
    with pytest.raises(CheckpointError, match="format 9; this version reads 2"):
        read_meta(find_checkpoint(run_copy))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 32}, r"embedding.weight has shape \(32, 16\) there, \(32, 32\) in this model config"),
        ({"num_layers": 4}, r"layers.0.attention.key.weight has shape \(2, 16, 4, 4\) there, \(4, 16, 4, 4\)"),
        ({"tied_head": False}, r"head.weight has shape none there, \(16, 32\) in this model config"),
    ],
)
def test_another_model_is_refused_by_the_name_of_a_parameter(saved_run, changed, message, one_device):
    other = msgspec.structs.replace(TOY, **changed)
    with pytest.raises(CheckpointError, match=rf"holds another model: params {message}"):
        load_params(find_checkpoint(saved_run[0]), abstract(other, AXES))
    with pytest.raises(CheckpointError, match="holds another model"):
        restore(saved_run[0], cfg=other)


def test_another_plan_is_refused(saved_run, one_device):
    with pytest.raises(CheckpointError, match="20 was trained on data plan plan, this recipe gives other"):
        restore(saved_run[0], plan_hash="other")


def test_another_plan_is_taken_where_the_caller_takes_any(saved_run, one_device):
    restored = restore(saved_run[0], plan_hash=None)
    assert restored is not None
    assert restored[1] == restore(saved_run[0])[1]


def test_a_run_that_saved_nothing_restores_nothing(tmp_path, one_device):
    assert restore(tmp_path) is None


def test_places_without_a_checkpoint_say_what_to_give(tmp_path, saved_run):
    with pytest.raises(CheckpointError, match=r"does not exist; give a run directory or RUN/checkpoints/STEP"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"checkpoints/7 does not exist; .*known here: \[0, 20\]"):
        find_checkpoint(saved_run[0] / "checkpoints" / "7")
    with pytest.raises(CheckpointError, match=r"holds no complete checkpoint .*train first"):
        find_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"only half-written ones: \['3'\]"):
        find_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ({"keep_last": 2}, [0, 35, 40]),
        ({"keep_last": 1, "keep_initial": False}, [40]),
        ({"keep_last": 1, "keep_every": 20}, [0, 20, 40]),
        ({"keep_last": 3, "keep_every": 15, "keep_initial": False}, [0, 15, 30, 35, 40]),
    ],
)
def test_retention_keeps_what_it_says(tmp_path, config, kept, one_device):
    state = TrainState(step=jnp.int32(0), params={"w": jnp.ones(3)}, opt_state=(jnp.ones(2),))
    save_steps(tmp_path, state, range(0, 41, 5), **config)
    assert list_steps(tmp_path) == (kept, [])


def test_retention_outlives_the_process_that_saved(tmp_path, one_device):
    state = TrainState(step=jnp.int32(0), params={"w": jnp.ones(3)}, opt_state=(jnp.ones(2),))
    for steps in ([0, 5], [10], [15, 20]):
        save_steps(tmp_path, state, steps, keep_last=2)
    assert list_steps(tmp_path) == ([0, 15, 20], [])


@pytest.mark.parametrize(
    ("keep_initial", "due"), [(True, [0, 4, 8, 10]), (False, [4, 8, 10])], ids=["with step 0", "without"]
)
def test_saves_are_due_by_interval_at_the_start_and_at_the_end(tmp_path, keep_initial, due):
    with open_saver(tmp_path, save_every=4, keep_initial=keep_initial) as saver:
        assert [step for step in range(11) if saver.is_due(step, last=10)] == due


@pytest.mark.parametrize("shape", [(1, 1), (4, 2)], ids=str)
def test_a_state_donated_while_it_is_being_saved_is_saved_unchanged(tmp_path, shape):
    """Sixteen megabytes a save, back to back, steps overwriting the state at once: no later byte is saved."""
    size = (1024, 1024)
    update = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    with jax.set_mesh(mesh_of(shape)):

        @jax.jit
        def make(first):
            rows = jax.lax.broadcast(first, size, out_sharding=jax.P("fsdp", "tensor"))
            params = {name: rows + i for i, name in enumerate("abc")}
            return TrainState(step=jnp.int32(0), params=params, opt_state=(rows - 1, jnp.int32(7)))

        with open_saver(tmp_path, keep_last=20) as saver:
            for save in range(8):
                state = make(np.float32(save * 100))
                saver.save(state, step=save, next_row=save)
                for _ in range(6):
                    state = update(state)
        likes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
        for save in range(8):
            found = CheckpointPath(run_dir=tmp_path, step=save, path=tmp_path / "checkpoints" / str(save))
            params = load_params(found, likes.params)
            for i, name in enumerate("abc"):
                np.testing.assert_array_equal(params[name], np.full(size, save * 100 + i, np.float32))


def test_a_full_disk_is_an_error_that_says_what_to_do_and_spares_what_is_saved(run_copy, saved_run, one_device):
    """Files may not grow past 100 kB, as if the disk were full; the state needs megabytes."""
    rng = np.random.default_rng(0)
    large = TrainState(
        step=jnp.int32(30), params={"w": jnp.asarray(rng.normal(size=(1024, 1024)))}, opt_state=(jnp.ones(2),)
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = (
        r"could not be written to .*checkpoints .*File too large.* MB are free there\. "
        r"Earlier checkpoints are intact: make room, then run the same command again"
    )
    try:
        with pytest.raises(CheckpointError, match=message), open_saver(run_copy) as saver:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            saver.save(large, step=30, next_row=240)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert find_checkpoint(run_copy).step == 20
    state, next_row = restore(run_copy)
    assert next_row == 160
    assert_equal_trees(copy_to_host(state.params), saved_run[1].params)


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_last_save(tmp_path, one_device, monkeypatch):
    with pytest.raises(KeyError, match="the real one"), open_saver(tmp_path) as saver:
        monkeypatch.setattr(saver._checkpointer, "close", lambda: 1 / 0)
        raise KeyError("the real one")


def test_a_disk_too_small_for_the_run_is_refused_before_the_first_step(tmp_path, toy_params, one_device, monkeypatch):
    state = place_state(toy_params, TX)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=4 * size))
    check_disk(tmp_path, state, copies=4)
    with pytest.raises(CheckpointError, match=r"has 0 MB free; 5 checkpoints .* need .*lower checkpoint.keep_last"):
        check_disk(tmp_path, state, copies=5)


def test_the_room_for_an_average_is_that_of_all_parameters_frozen_ones_too(tmp_path, monkeypatch):
    """It is saved whole, whatever is trained: a run of which little is trained would fill the disk."""
    params = {"a": jax.ShapeDtypeStruct((1000,), np.float32), "b": jax.ShapeDtypeStruct((1000,), np.float32)}
    step = jax.ShapeDtypeStruct((), np.int32)
    state = TrainState(step=step, params=params, opt_state=(), ema={"a": params["a"]})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=16_003))
    with pytest.raises(CheckpointError, match="1 checkpoints of 0 MB"):
        check_disk(tmp_path, state, copies=1)
