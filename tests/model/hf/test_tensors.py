"""A folder of tensors is read whole and as its index says, or not at all."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from model.hf.tensors import INDEX_FILE, SINGLE_FILE, TensorError, open_folder

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TENSORS = {
    "embed.weight": np.arange(12, dtype=np.float32).reshape(4, 3),
    "norm.weight": np.array([1.5, -2.0], np.float16),
    "head.weight": np.arange(6, dtype=np.float64).reshape(2, 3),
}
WHERE = {"embed.weight": SHARDS[0], "norm.weight": SHARDS[1], "head.weight": SHARDS[1]}


def write_index(folder, *, weight_map=WHERE, **metadata):
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    for shard in SHARDS:
        save_file({name: TENSORS[name] for name in TENSORS if WHERE[name] == shard}, tmp_path / shard, {"format": "pt"})
    write_index(tmp_path, total_size=100)
    return tmp_path


@pytest.fixture
def single(tmp_path):
    save_file(TENSORS, tmp_path / SINGLE_FILE)
    return tmp_path


@pytest.mark.parametrize("layout", ["sharded", "single"])
def test_tensors_come_as_the_safetensors_library_wrote_them(layout, request):
    path = request.getfixturevalue(layout)
    folder = open_folder(path)
    assert set(folder.names) == set(TENSORS)
    assert folder.total_bytes == 12 * 4 + 2 * 2 + 6 * 8
    for name, wanted in TENSORS.items():
        assert (folder.shape(name), folder.dtype(name)) == (wanted.shape, wanted.dtype)
        assert folder.file_of(name) == path / (WHERE[name] if layout == "sharded" else SINGLE_FILE)
        np.testing.assert_array_equal(folder.read(name), wanted, strict=True)
        np.testing.assert_array_equal(folder.read(name, np.float32), wanted.astype(np.float32), strict=True)
    assert folder.files[0].metadata == ({"format": "pt"} if layout == "sharded" else {})


@given(rows=st.integers(0, 6), columns=st.integers(0, 4), data=st.data())
def test_a_slice_is_those_rows_and_no_others(rows, columns, data, tmp_path_factory):
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    wanted = np.arange(rows * columns * 2, dtype=np.float32).reshape(rows, columns, 2)
    path = tmp_path_factory.mktemp("slice")
    save_file({"w": wanted, "other": np.ones(3, np.float32)}, path / SINGLE_FILE)
    folder = open_folder(path)
    np.testing.assert_array_equal(folder.read_slice("w", start, stop), wanted[start:stop], strict=True)
    half = folder.read_slice("w", start, stop, np.float16)
    np.testing.assert_array_equal(half, wanted[start:stop].astype(np.float16), strict=True)


def test_a_slice_reads_its_own_bytes_only(tmp_path):
    save_file({"w": np.arange(8, dtype=np.float32).reshape(4, 2)}, tmp_path / SINGLE_FILE)
    folder = open_folder(tmp_path)
    os.truncate(tmp_path / SINGLE_FILE, (tmp_path / SINGLE_FILE).stat().st_size - 8)  # the last row is gone
    np.testing.assert_array_equal(folder.read_slice("w", 1, 3), [[2, 3], [4, 5]])
    with pytest.raises(TensorError, match="ends within tensor 'w'"):
        folder.read_slice("w", 2, 4)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 1), (0, 5), (5, 5)])
def test_a_slice_outside_the_tensor_is_an_error(start, stop, single):
    with pytest.raises(TensorError, match=rf"rows {start} to {stop} of tensor 'embed.weight' .* shape is \(4, 3\)"):
        open_folder(single).read_slice("embed.weight", start, stop)


def test_a_scalar_has_no_rows(tmp_path):
    save_file({"s": np.array(1.0, np.float32)}, tmp_path / SINGLE_FILE)
    with pytest.raises(TensorError, match="rows 0 to 0 of tensor 's'"):
        open_folder(tmp_path).read_slice("s", 0, 0)


def test_a_tensor_that_is_not_there_is_named(single):
    with pytest.raises(TensorError, match=r"holds no tensor 'lm_head.weight' \(it holds '.*'\)"):
        open_folder(single).read("lm_head.weight")


def test_a_missing_shard_is_named_with_what_it_held(sharded):
    (sharded / SHARDS[1]).unlink()
    with pytest.raises(TensorError, match=f"{SHARDS[1]} is missing; .* 'norm.weight', 'head.weight'"):
        open_folder(sharded)


def test_a_dead_link_to_a_shard_is_a_missing_shard(sharded):
    (sharded / SHARDS[1]).unlink()
    (sharded / SHARDS[1]).symlink_to(sharded / "blobs" / "gone")
    with pytest.raises(TensorError, match=f"{SHARDS[1]} is missing"):
        open_folder(sharded)


def test_a_linked_folder_of_the_hub_cache_is_read(sharded, tmp_path_factory):
    snapshot = tmp_path_factory.mktemp("snapshot")
    for path in sharded.iterdir():
        (snapshot / path.name).symlink_to(path)
    np.testing.assert_array_equal(open_folder(snapshot).read("head.weight"), TENSORS["head.weight"])


def test_a_shard_cut_short_is_named(sharded):
    os.truncate(sharded / SHARDS[0], (sharded / SHARDS[0]).stat().st_size - 1)
    with pytest.raises(TensorError, match=f"{SHARDS[0]} has .* tensor 'embed.weight' ends at byte .* cut short"):
        open_folder(sharded)


def test_an_index_that_names_the_wrong_shard_is_a_lie(sharded):
    write_index(sharded, weight_map=WHERE | {"norm.weight": SHARDS[0]})
    with pytest.raises(TensorError, match=f"{SHARDS[1]} holds tensor 'norm.weight', which .* says is in {SHARDS[0]}"):
        open_folder(sharded)


def test_a_tensor_in_two_shards_is_an_error(sharded):
    save_file({name: TENSORS[name] for name in ("embed.weight", "norm.weight")}, sharded / SHARDS[0])
    with pytest.raises(TensorError, match=f"{SHARDS[0]} holds tensor 'norm.weight', which .* says is in {SHARDS[1]}"):
        open_folder(sharded)


def test_a_tensor_the_index_does_not_list_is_left_over(sharded):
    write_index(sharded, weight_map={name: file for name, file in WHERE.items() if name != "norm.weight"})
    with pytest.raises(TensorError, match=f"{SHARDS[1]} holds tensor 'norm.weight', which .* does not list"):
        open_folder(sharded)


def test_a_listed_tensor_that_no_shard_holds_is_lost(sharded):
    write_index(sharded, weight_map=WHERE | {"lm_head.weight": SHARDS[1]})
    with pytest.raises(TensorError, match=f"{SHARDS[1]} does not hold tensor 'lm_head.weight'"):
        open_folder(sharded)


def test_a_total_size_that_lies_is_an_error(sharded):
    write_index(sharded, total_size=104)
    with pytest.raises(TensorError, match=rf"{INDEX_FILE} gives a total_size of 104; .* have 100 bytes"):
        open_folder(sharded)


@pytest.mark.parametrize("metadata", [{}, {"total_size": None}, {"total_size": 100.0}, {"total_size": "files"}])
def test_a_total_size_may_be_absent_or_count_whole_files(metadata, sharded):
    if metadata.get("total_size") == "files":  # what MLX writes
        metadata = {"total_size": sum((sharded / shard).stat().st_size for shard in SHARDS)}
    write_index(sharded, **metadata)
    assert open_folder(sharded).total_bytes == 100


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a\\b.safetensors", "model.bin", ""]
)
def test_an_index_cannot_point_outside_its_folder_or_at_a_pickle(name, sharded):
    write_index(sharded, weight_map=WHERE | {"x": name})
    with pytest.raises(TensorError, match=f"{INDEX_FILE} names the file"):
        open_folder(sharded)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {"a": 1}}', "{", "\ufeff{}"])
def test_an_index_that_is_not_one_is_an_error_that_names_it(content, sharded):
    (sharded / INDEX_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(TensorError, match=INDEX_FILE):
        open_folder(sharded)


def test_an_index_with_a_tensor_twice_is_an_error(sharded):
    (sharded / INDEX_FILE).write_text(f'{{"weight_map": {{"w": "{SHARDS[0]}", "w": "{SHARDS[1]}"}}}}')
    with pytest.raises(TensorError, match="the index lists 'w' twice"):
        open_folder(sharded)


def test_two_sets_of_weights_are_not_chosen_from(sharded):
    save_file(TENSORS, sharded / SINGLE_FILE)
    with pytest.raises(TensorError, match="two sets of weights"):
        open_folder(sharded)


def test_an_index_over_the_single_file_is_no_contradiction(single):
    write_index(single, weight_map=dict.fromkeys(TENSORS, SINGLE_FILE))
    assert set(open_folder(single).names) == set(TENSORS)


def test_files_that_the_index_does_not_name_are_not_read(sharded):
    (sharded / "consolidated.safetensors").write_bytes(b"damaged")
    (sharded / "model-00001-of-00009.safetensors").write_bytes(b"damaged")
    assert set(open_folder(sharded).names) == set(TENSORS)


def test_a_folder_of_pickles_says_how_to_convert_it(tmp_path):
    (tmp_path / "pytorch_model-00001-of-00001.bin").write_bytes(b"PK")
    with pytest.raises(TensorError, match=r"'pytorch_model-00001-of-00001.bin'; .* never read.*save_pretrained"):
        open_folder(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path):
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(
        TensorError, match=r"holds no model.safetensors .*'consolidated.safetensors'.*'training_args.bin'"
    ):
        open_folder(tmp_path)


def test_a_path_that_is_no_folder_is_an_error(tmp_path):
    with pytest.raises(TensorError, match="is not a folder"):
        open_folder(tmp_path / "absent")
