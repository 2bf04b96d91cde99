"""A damaged file never becomes weights: it ends in a TensorError that names it, and nothing else."""

import json
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from model.hf.tensor_file import CHUNK_BYTES, DTYPES, TensorError, open_file, read_tensor

ROOT = Path(__file__).resolve().parents[3]
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

dtypes = st.sampled_from(sorted(DTYPES))
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)
many_specs = st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(dtypes, shapes), max_size=5)


def entry(start: int, stop: int, *, dtype: str = "F32", shape: tuple = (2,)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    """A file of this header, whatever it says, and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def library_file(path: Path, specs: dict[str, tuple[str, tuple]]) -> dict[str, bytes]:
    """Writes a file of random bytes (NaN and all) with the safetensors library; the bytes of every tensor."""
    rng = np.random.default_rng(0)
    tensors = {
        name: np.frombuffer(rng.bytes(math.prod(shape) * DTYPES[dtype].itemsize), DTYPES[dtype]).reshape(shape)
        for name, (dtype, shape) in specs.items()
    }
    path.write_bytes(safetensors.numpy.save(tensors, {"format": "pt"}))
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def small_file(path: Path) -> bytes:
    """A valid file of all types and odd shapes, and its content."""
    specs = {
        "a.weight": ("F32", (2, 3)),
        "b": ("BF16", (5,)),
        "c": ("F16", ()),
        "d": ("F64", (1, 12)),
        "e": ("F32", (0, 7)),
    }
    library_file(path, specs)
    return path.read_bytes()


def contents(path: Path) -> list[tuple]:
    """Type, bytes and shape of every tensor in the order of the file; no shape where there are no bytes."""
    tensors = open_file(path).tensors.values()
    arrays = [(tensor.dtype, read_tensor(tensor, shape=tensor.shape)) for tensor in tensors]
    return [(dtype, array.tobytes(), array.shape if array.size else None) for dtype, array in arrays]


@given(specs=many_specs.filter(lambda specs: "__metadata__" not in specs))
def test_every_tensor_of_the_safetensors_library_is_read_bit_for_bit(specs, tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "x.safetensors"
    wanted = library_file(path, specs)
    found = open_file(path)
    assert found.metadata == {"format": "pt"}
    assert set(found.tensors) == set(wanted)
    for name, tensor in found.tensors.items():
        array = read_tensor(tensor, shape=tensor.shape)
        assert (array.dtype, array.shape) == (DTYPES[specs[name][0]], specs[name][1])
        assert array.flags.c_contiguous and array.flags.writeable
        assert array.tobytes() == wanted[name]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_jax_takes_over_the_memory_without_a_copy(dtype, tmp_path):
    """A copy on the way in would double the peak of host memory."""
    library_file(tmp_path / "x", {"pad": (dtype, (3,)), "w": (dtype, (5, 7))})
    array = read_tensor(open_file(tmp_path / "x").tensors["w"], shape=(5, 7))
    placed = jax.device_put(array, jax.devices("cpu")[0])
    assert placed.unsafe_buffer_pointer() == array.ctypes.data


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("wanted", DTYPES)
def test_a_cast_in_chunks_equals_the_cast_of_the_whole(stored, wanted, tmp_path):
    size = CHUNK_BYTES // DTYPES[stored].itemsize + 3  # one element of the second chunk misplaced shows
    values = np.random.default_rng(0).normal(size=size).astype(DTYPES[stored])
    values[:3] = [np.nan, np.inf, -np.inf]
    raw_file(tmp_path / "x", {"w": entry(0, values.nbytes, dtype=stored, shape=(size,))}, values.tobytes())
    array = read_tensor(open_file(tmp_path / "x").tensors["w"], shape=(size,), dtype=DTYPES[wanted])
    assert array.tobytes() == values.astype(DTYPES[wanted]).tobytes()
    assert (array.dtype, array.shape) == (DTYPES[wanted], (size,))
    assert array.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    ("stored", "wanted", "value"),
    [("F32", np.float16, 70_000), ("BF16", np.float16, 1e6), ("F32", BFLOAT16, 3.4e38), ("F64", np.float32, -1e39)],
)
def test_a_value_beyond_the_wanted_type_does_not_become_infinite(stored, wanted, value, tmp_path):
    data = np.array([1, np.inf, value], DTYPES[stored])
    path = raw_file(tmp_path / "x", {"w": entry(0, data.nbytes, dtype=stored, shape=(3,))}, data.tobytes())
    with pytest.raises(TensorError, match=rf"{path}: tensor 'w' holds -?[0-9.e+]+, beyond the range of"):
        read_tensor(open_file(path).tensors["w"], shape=(3,), dtype=wanted)


def test_a_header_length_of_a_lie_allocates_nothing(tmp_path):
    path = tmp_path / "x"
    for length in (2**60, 2**63, 2**64 - 1, 1_000, 50):
        path.write_bytes(length.to_bytes(8, "little") + b"{}" + b" " * 40)
        tracemalloc.start()
        with pytest.raises(TensorError, match=f"{path} has 50 bytes and a header of {length}"):
            open_file(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


def test_a_header_above_the_limit_of_the_format_is_refused_unread(tmp_path):
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)  # takes no room on disk
    with pytest.raises(TensorError, match="more than the 100000000 that safetensors allows"):
        open_file(path)


def test_a_file_cut_short_anywhere_is_an_error_that_names_it(tmp_path):
    whole = small_file(tmp_path / "whole")
    path = tmp_path / "cut.safetensors"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(TensorError, match=str(path)):
            open_file(path)


def test_a_byte_too_many_is_an_error(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(small_file(path) + b"\0")
    with pytest.raises(TensorError, match="the rest belongs to none"):
        open_file(path)


def test_a_flipped_bit_of_the_header_changes_no_weight_unnoticed(tmp_path):
    """Every bit of length and header: an error that names the file, or the same types, shapes and bytes."""
    path = tmp_path / "flipped.safetensors"
    whole = small_file(path)
    wanted, seen = contents(path), set()
    with path.open("r+b", buffering=0) as file:
        for place in range(8 + int.from_bytes(whole[:8], "little")):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([whole[place] ^ 1 << bit]), place)
                try:
                    assert contents(path) == wanted, f"bit {bit} of byte {place}"
                    seen.add("same")
                except TensorError as error:
                    assert str(path) in str(error)
                    seen.add("error")
            os.pwrite(file.fileno(), whole[place : place + 1], place)
    assert seen == {"same", "error"}  # a name or a blank may change; nothing else does


def test_a_thousand_random_edits_end_in_an_error_or_in_arrays(tmp_path):
    path = tmp_path / "edited.safetensors"
    whole = small_file(path)
    rng = np.random.default_rng(0)
    pieces = [b"[", b"{", b'"', b",", b"-1", b"9" * 30, b"9" * 5000, b"1e999", b"NaN", b"\xff", b"\\ud800", b"\0", b"0"]
    errors = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(0, len(damaged)))
            stop = start + int(rng.integers(0, 12))
            damaged[start:stop] = pieces[rng.integers(len(pieces))] if rng.random() < 0.6 else rng.bytes(4)
        if rng.random() < 0.7:  # else the length stays and nearly nothing gets past it
            damaged[:8] = (int.from_bytes(whole[:8], "little") + len(damaged) - len(whole)).to_bytes(8, "little")
        path.write_bytes(damaged)
        try:
            contents(path)
        except TensorError as error:
            assert "edited.safetensors" in str(error)
            errors += 1
    assert 900 < errors <= 1000


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"w": entry(0, 8), "v": entry(4, 12)}, "tensor 'v' starts at byte .* overlaps the tensor before it"),
        ({"w": entry(0, 8), "v": entry(0, 8)}, "starts at byte .* overlaps"),
        ({"w": entry(0, 8), "v": entry(12, 20)}, "tensor 'v' starts at byte .* leaves a gap before it"),
        ({"w": entry(8, 16)}, "tensor 'w' starts at byte .* leaves a gap"),
        (
            {"w": entry(0, 8, shape=(3,))},
            r"tensor 'w' of F32 and shape \[3\] needs 12 bytes; its offsets 0 to 8 hold 8",
        ),
        ({"w": entry(0, 8, dtype="F64")}, r"tensor 'w' of F64 and shape \[2\] needs 16 bytes"),
        ({"w": entry(0, 1, dtype="F4", shape=(3,))}, "tensor 'w' of F4"),
        ({"w": entry(8, 0)}, "tensor 'w' has the impossible shape .* or offsets"),
        ({"w": entry(-8, 0)}, r"or offsets \[-8, 0\]"),
        ({"w": entry(0, 8, shape=(-1, -2))}, r"impossible shape \[-1, -2\]"),
        ({"w": entry(0, 0, shape=(0, 2**62))}, "impossible shape"),
        ({"w": entry(0, 4, shape=(1,) * 65)}, "impossible shape"),
        ({"w": entry(0, 4, shape=(10**4000,) * 60)}, "impossible shape"),
        ({"w": entry(0, 10**4000)}, "impossible shape .* or offsets"),
        ({"w": entry(0, 8, dtype="F8_NEW")}, "tensor 'w' has the unknown type 'F8_NEW'; weights are read as F64"),
        ({"w": entry(0, 8, shape=(True,))}, "header of tensor 'w' is not of the form"),
        ({"w": entry(0, 8, shape=(2.0,))}, "header of tensor 'w' is not of the form"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "header of tensor 'w' is not of the form .*data_offsets"),
        ({"w": None}, "header of tensor 'w' is not of the form"),
        ({"__metadata__": {"format": 1}}, "its metadata is not of the form"),
        ([], "its header is a JSON list, not an object"),
        (b'{"w":1,"w":1}', "its header lists 'w' twice"),
        (b'{"w":{"dtype":"F32","dtype":"F16"}}', "its header lists 'dtype' twice"),
        (b'{"\\ud800":1}', "its header is not JSON"),
        (b"[" * 100_000, "its header is not JSON"),
        (b"\xff{}", "its header is not JSON"),
        (b"", "its header is not JSON"),
    ],
)
def test_a_header_that_cannot_be_is_an_error_that_says_why(header, message, tmp_path):
    path = raw_file(tmp_path / "bad.safetensors", header, b"\0" * 20)
    with pytest.raises(TensorError, match=message) as caught:
        open_file(path)
    assert str(path) in str(caught.value)


def test_a_git_lfs_pointer_is_called_by_its_name(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(TensorError, match=r"Git LFS pointer.*git lfs pull"):
        open_file(path)


def test_a_pipe_is_refused_before_it_blocks(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(TensorError, match="not a file"):
        open_file(tmp_path / "x")


@pytest.mark.parametrize("dtype", ["I64", "BOOL", "U8", "F8_E4M3", "F8_E5M2", "F4", "C64"])
def test_a_type_that_is_not_read_stops_only_who_reads_it(dtype, tmp_path):
    """Old checkpoints carry integer buffers that no model needs; quantised weights must not be taken for others."""
    size = {"I64": 16, "C64": 16, "F4": 1}.get(dtype, 2)
    path = raw_file(tmp_path / "x", {"q": entry(0, size, dtype=dtype), "w": entry(size, size + 8)}, bytes(size + 8))
    found = open_file(path)
    assert read_tensor(found.tensors["w"], shape=(2,)).tolist() == [0, 0]
    with pytest.raises(
        TensorError, match=f"{path}: tensor 'q' is stored as {dtype}; weights are read as F64, F32, F16"
    ):
        read_tensor(found.tensors["q"], shape=(2,))


def test_a_cast_to_integers_is_refused(tmp_path):
    path = raw_file(tmp_path / "x", {"w": entry(0, 8)}, bytes(8))
    with pytest.raises(TensorError, match="tensor 'w' was asked for as int32"):
        read_tensor(open_file(path).tensors["w"], shape=(2,), dtype=np.int32)


@pytest.mark.parametrize("dtype", [None, np.float16])
def test_a_file_that_shrinks_after_it_was_opened_is_an_error(dtype, tmp_path):
    path = raw_file(tmp_path / "x", {"w": entry(0, 8)}, bytes(8))
    tensor = open_file(path).tensors["w"]
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(TensorError, match=f"{path} ends within tensor 'w'"):
        read_tensor(tensor, shape=(2,), dtype=dtype)


MEASURE = """
import re, sys
from pathlib import Path
from model.hf.tensor_file import open_file, read_tensor
def peak():
    # Not getrusage: its peak starts at what the parent process holds.
    return 1024 * int(re.search(r"VmHWM:\\s*([0-9]+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
for tensor in open_file(Path(sys.argv[1])).tensors.values():
    array = read_tensor(tensor, shape=tensor.shape, dtype=sys.argv[2])
    del array
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("wanted", "result_share"), [("float32", 1), ("bfloat16", 0.5)])
def test_reading_a_file_takes_the_memory_of_its_largest_tensor(wanted, result_share, tmp_path):
    """200 MB: a file mapped or read whole would show as 3 times the largest tensor, a cast of the whole as 1.5."""
    sizes_MB = (20, 40, 60, 1, 59, 20)
    ends = np.cumsum(sizes_MB) * 10**6
    header = {
        f"w{i}": entry(int(end) - size * 10**6, int(end), shape=(size * 250_000,))
        for i, (size, end) in enumerate(zip(sizes_MB, ends, strict=True))
    }
    path = raw_file(tmp_path / "x", header)
    os.truncate(path, path.stat().st_size + int(ends[-1]))  # a hole: zeros that take no room on disk
    command = [sys.executable, "-c", MEASURE, str(path), wanted]
    growth = int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    largest = max(sizes_MB) * 10**6 * result_share
    assert 0.8 < growth / largest < 1.5
