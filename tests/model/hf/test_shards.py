"""What is written is what the safetensors library reads, and nothing half written ever has the final name."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from model.hf.shards import FolderWriter, TensorSpec, building, compare_folder, parse_size, plan_shards
from model.hf.tensor_file import CHUNK_BYTES, DTYPES
from model.hf.tensors import INDEX_FILE, SINGLE_FILE, TensorError, open_folder

ROOT = Path(__file__).resolve().parents[3]
FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

names = st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
many_specs = st.dictionaries(names, st.tuples(shapes, st.sampled_from(list(DTYPES.values()))), min_size=1, max_size=6)


def specs_of(arrays: dict[str, np.ndarray]) -> list[TensorSpec]:
    return [TensorSpec(name, array.shape, array.dtype) for name, array in arrays.items()]


def random_arrays(specs: dict[str, tuple]) -> dict[str, np.ndarray]:
    """Arrays of random bytes: NaN of every kind, infinities, subnormal numbers."""
    rng = np.random.default_rng(0)
    return {
        name: np.frombuffer(rng.bytes(math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
        for name, (shape, dtype) in specs.items()
    }


def write_folder(folder: Path, arrays: dict[str, np.ndarray], max_shard_bytes: int = 10**9) -> Path:
    with FolderWriter(folder, plan_shards(specs_of(arrays), max_shard_bytes)) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return folder


def library_read(path: Path) -> dict[str, dict]:
    """Type, shape and bytes of every tensor of a file, as the safetensors library reads them."""
    return dict(safetensors.deserialize(path.read_bytes()))


@given(specs=many_specs, max_shard_bytes=st.integers(1, 200))
def test_a_folder_is_what_the_safetensors_library_reads_and_reads_back_alike(specs, max_shard_bytes, tmp_path_factory):
    arrays = random_arrays(specs)
    folder = write_folder(tmp_path_factory.mktemp("out"), arrays, max_shard_bytes)
    found = {name: read for path in folder.glob("*.safetensors") for name, read in library_read(path).items()}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert (tuple(found[name]["shape"]), bytes(found[name]["data"])) == (array.shape, array.tobytes())
        assert DTYPES[found[name]["dtype"]] == array.dtype
    compare_folder(folder, arrays.items())


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=12), limit=st.integers(1, 30))
def test_shards_keep_the_order_and_the_limit_and_are_no_more_than_needed(sizes, limit):
    specs = [TensorSpec(f"w{i}", (size,), FLOAT32) for i, size in enumerate(sizes)]
    shards = plan_shards(specs, 4 * limit)
    assert [spec for shard in shards for spec in shard.specs] == specs
    totals = [sum(spec.size_bytes for spec in shard.specs) for shard in shards]
    for shard, total in zip(shards, totals, strict=True):
        assert total <= 4 * limit or len([spec for spec in shard.specs if spec.size_bytes]) == 1
    for total, after in zip(totals, shards[1:], strict=False):
        assert total + after.specs[0].size_bytes > 4 * limit


def test_shards_are_named_as_transformers_names_them():
    specs = [TensorSpec(name, (size,), FLOAT32) for name, size in zip("abcd", (3, 3, 5, 9), strict=True)]
    assert [(shard.file_name, "".join(spec.name for spec in shard.specs)) for shard in plan_shards(specs, 32)] == [
        ("model-00001-of-00003.safetensors", "ab"),
        ("model-00002-of-00003.safetensors", "c"),
        ("model-00003-of-00003.safetensors", "d"),
    ]
    assert [shard.file_name for shard in plan_shards(specs, 80)] == [SINGLE_FILE]


def test_the_index_gives_the_total_of_bytes_and_of_parameters(tmp_path):
    arrays = {"b": np.ones((2, 3), np.float32), "a": np.ones(5, BFLOAT16), "n": np.ones(2, np.float32)}
    write_folder(tmp_path, arrays, max_shard_bytes=24)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert json.loads((tmp_path / INDEX_FILE).read_text()) == {
        "metadata": {"total_parameters": 13, "total_size": 42},
        "weight_map": {"b": first, "a": second, "n": second},
    }


def test_every_tensor_starts_at_a_multiple_of_its_width(tmp_path):
    """Readers that map files need that: an odd number of bfloat16 before a float32 must not shift it by two bytes."""
    arrays = {"odd": np.ones(3, BFLOAT16), "wide": np.ones(2, np.float64), "w": np.ones(3, np.float32)}
    folder = open_folder(write_folder(tmp_path, arrays))
    for name, array in arrays.items():
        assert folder.stored(name).start % array.dtype.itemsize == 0
    compare_folder(tmp_path, arrays.items())
    assert folder.files[0].metadata == {"format": "pt"}


@pytest.mark.parametrize("columns", [3, CHUNK_BYTES // 8])
def test_a_transposed_tensor_is_written_in_its_own_order(columns, tmp_path):
    array = np.arange(3 * columns, dtype=np.float32).reshape(columns, 3).T
    assert not array.flags.c_contiguous
    write_folder(tmp_path, {"w": array})
    np.testing.assert_array_equal(open_folder(tmp_path).read("w"), array)
    compare_folder(tmp_path, [("w", array)])


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("b", np.ones(2, np.float32), "tensor 'b' came where 'a' was planned"),
        ("a", np.ones(3, np.float32), r"tensor 'a' is float32 of shape \(3,\); planned was float32 of shape \(2,\)"),
        ("a", np.ones(2, np.float16), "tensor 'a' is float16"),
        ("a", np.ones(2, ">f4"), "tensor 'a' is >f4"),
    ],
)
def test_a_tensor_other_than_planned_is_an_error_that_leaves_nothing(name, array, message, tmp_path):
    shards = plan_shards([TensorSpec("a", (2,), FLOAT32), TensorSpec("b", (2,), FLOAT32)], 100)
    with pytest.raises(TensorError, match=message), FolderWriter(tmp_path, shards) as writer:
        writer.write(name, array)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_beyond_the_plan_is_an_error_that_leaves_nothing(tmp_path):
    shards = plan_shards([TensorSpec("a", (2,), FLOAT32)], 100)
    with pytest.raises(TensorError, match="'b' was written after the last"), FolderWriter(tmp_path, shards) as writer:
        writer.write("a", np.ones(2, np.float32))
        writer.write("b", np.ones(2, np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_planned_tensor_that_never_came_is_named_and_nothing_of_ours_is_left(written, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    shards = plan_shards([TensorSpec(name, (2,), FLOAT32) for name in "abc"], 8)
    wanted = f"{shards[written].file_name}: planned tensor '{'abc'[written]}' was not written"
    with pytest.raises(TensorError, match=wanted), FolderWriter(tmp_path, shards) as writer:
        for name in "abc"[:written]:
            writer.write(name, np.ones(2, np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_an_error_from_elsewhere_passes_and_leaves_nothing(tmp_path):
    shards = plan_shards([TensorSpec(name, (2,), FLOAT32) for name in "ab"], 100)
    with pytest.raises(KeyboardInterrupt), FolderWriter(tmp_path, shards) as writer:
        writer.write("a", np.ones(2, np.float32))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / SINGLE_FILE).write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_folder(tmp_path, {"a": np.ones(2, np.float32)})
    assert (tmp_path / SINGLE_FILE).read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("specs", "limit", "message"),
    [
        ([], 100, "no tensors to write"),
        ([TensorSpec("a", (2,), FLOAT32)] * 2, 100, "name 'a' is empty, reserved, or planned twice"),
        ([TensorSpec("__metadata__", (2,), FLOAT32)], 100, "reserved"),
        ([TensorSpec("a", (2,), np.dtype(np.int32))], 100, "tensor 'a' is int32; written are float64, float32"),
        ([TensorSpec("a", (2,), FLOAT32)], 0, "at most 0 bytes"),
    ],
)
def test_a_plan_that_cannot_be_is_an_error(specs, limit, message):
    with pytest.raises(TensorError, match=message):
        plan_shards(specs, limit)


ARRAYS = {"a": np.arange(3, dtype=np.float32), "b": np.array([np.nan, -0.0], np.float16)}


def test_one_damaged_bit_of_a_tensor_is_found_and_named(tmp_path):
    folder = open_folder(write_folder(tmp_path, ARRAYS))
    for name in ARRAYS:
        stored = folder.stored(name)
        content = bytearray(stored.file.read_bytes())
        content[stored.start + 1] ^= 1
        stored.file.write_bytes(content)
        with pytest.raises(TensorError, match=f"{SINGLE_FILE}: tensor '{name}' does not read back"):
            compare_folder(tmp_path, ARRAYS.items())
        content[stored.start + 1] ^= 1
        stored.file.write_bytes(content)
    compare_folder(tmp_path, ARRAYS.items())


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"a": ARRAYS["a"]}, "holds tensor 'b', which it should not"),
        (ARRAYS | {"c": ARRAYS["a"]}, "holds no tensor 'c'"),
        (ARRAYS | {"a": ARRAYS["a"][:2]}, r"tensor 'a' is F32 of shape \(3,\); it should be float32 of shape \(2,\)"),
        (ARRAYS | {"a": ARRAYS["a"].astype(np.float64)}, "tensor 'a' is F32 .* it should be float64"),
        (ARRAYS | {"b": np.array([np.nan, 0.0], np.float16)}, "tensor 'b' does not read back"),  # the sign of zero
    ],
)
def test_a_folder_that_holds_something_else_is_an_error_that_says_what(expected, message, tmp_path):
    write_folder(tmp_path, ARRAYS)
    with pytest.raises(TensorError, match=message):
        compare_folder(tmp_path, expected.items())


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5_000_000_000), ("500MB", 500_000_000), ("1GiB", 2**30), ("3MiB", 3 * 2**20), ("1.1GB", 1_100_000_000),
        ("0.5 MiB", 2**19), ("2kb", 2_000), ("4KiB", 4096), (" 2TB ", 2 * 10**12),
    ],
)  # fmt: skip
def test_a_size_is_exact(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "5", "GB", "-1GB", "0GB", "0.0001KB", "1e3GB", "5 G", "5GBs", "1,5GB", "nan GB", "٥GB", "9" * 10 + "GB"],
)
def test_a_size_that_is_none_is_an_error(text):
    with pytest.raises(TensorError, match="is not a size; write a number and KB"):
        parse_size(text)


@pytest.mark.parametrize("empty_before", [False, True])
def test_a_folder_gets_its_name_when_it_is_whole(empty_before, tmp_path):
    place = tmp_path / "deep" / "out"
    if empty_before:
        place.mkdir(parents=True)
    with building(place) as fresh:
        write_folder(fresh, ARRAYS)
        assert not empty_before or list(place.iterdir()) == []
        assert empty_before or not place.exists()
    compare_folder(place, ARRAYS.items())
    assert [path.name for path in place.parent.iterdir()] == ["out"]
    (tmp_path / "usual").mkdir()
    assert place.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_neither_the_folder_nor_a_scratch_one_is_left(error, tmp_path):
    with pytest.raises(error), building(tmp_path / "out") as fresh:
        (fresh / "half").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "out", tmp_path / "file"):
        with pytest.raises(TensorError, match=f"{place} already exists"), building(place):
            pytest.fail("the block must not run")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "out"]


def test_a_folder_that_came_to_be_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(TensorError, match="already exists"), building(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


KILLED = """
import os, signal, sys
from model.hf.shards import building
with building(sys.argv[1]) as fresh:
    (fresh / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_never_has_the_name_and_goes_with_the_next(tmp_path):
    place, other = tmp_path / "out[1]", tmp_path / ".out.unfinished-of-another"
    other.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, str(place)], cwd=ROOT, check=False)
    assert not place.exists() and len(list(tmp_path.iterdir())) == 2
    with building(place) as fresh:
        write_folder(fresh, ARRAYS)
    assert sorted(tmp_path.iterdir()) == [other, place]


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from model.hf.shards import FolderWriter, TensorSpec, compare_folder, plan_shards
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
specs = [TensorSpec(f"w{i}", (10_000, 1_000), np.dtype(np.float32)) for i in range(5)]
def tensors():
    return ((spec.name, np.full(spec.shape, i, spec.dtype)) for i, spec in enumerate(specs))
before = peak()
with FolderWriter(Path(sys.argv[1]), plan_shards(specs, 90_000_000)) as writer:
    for name, array in tensors():
        writer.write(name, array)
        del array
compare_folder(sys.argv[1], tensors())
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_writing_and_comparing_a_folder_takes_the_memory_of_one_tensor_of_five(tmp_path):
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    growth = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    assert len(os.listdir(tmp_path)) == 4
    assert 0.8 < growth / 40_000_000 < 1.5
