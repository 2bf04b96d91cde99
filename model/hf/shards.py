"""Tensors written as a Hugging Face folder, streaming: planned from shapes alone, one tensor in memory at a time."""

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from model.hf.tensor_file import CHUNK_BYTES, DTYPES, StoredTensor, TensorError
from model.hf.tensors import INDEX_FILE, SINGLE_FILE, open_folder

_NAMES: Mapping[np.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_UNITS: Mapping[str, int] = {
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip


class TensorSpec(NamedTuple):
    """A tensor before it is there."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size_bytes(self) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


class Shard(NamedTuple):
    """One file of a folder and its tensors, in the order in which they are written."""

    file_name: str
    specs: tuple[TensorSpec, ...]


def parse_size(text: str) -> int:
    """Bytes from a number and a unit, KB to TB (powers of 1000) or KiB to TiB (of 1024): "5GB" is 5,000,000,000.

    Raises TensorError for anything else, and for less than one byte.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT]I?B)", text.strip().upper())
    size = int(Fraction(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise TensorError(f"{text!r} is not a size; write a number and KB, MB, GB, TB, KiB, MiB, GiB or TiB, like 5GB")
    return size


def plan_shards(specs: Iterable[TensorSpec], max_shard_bytes: int) -> list[Shard]:
    """Tensors in the order given, in as few files as that order allows, named as transformers names them.

    No file holds more than `max_shard_bytes` of tensors, except for a tensor larger than that, which is alone in
    one. Sizes (3, 3, 5, 9) at most 8 give [3, 3], [5], [9].

    Raises TensorError for no tensors, a name given twice or reserved, a type that is not written and a limit
    below one byte.
    """
    if max_shard_bytes < 1:
        raise TensorError(f"a shard of at most {max_shard_bytes} bytes holds no tensor; give one byte or more")
    groups: list[list[TensorSpec]] = []
    free = -1
    seen: set[str] = set()
    for spec in specs:
        _check_spec(spec, seen)
        seen.add(spec.name)
        free -= spec.size_bytes
        if free < 0:
            groups.append([])
            free = max_shard_bytes - spec.size_bytes
        groups[-1].append(spec)
    if not groups:
        raise TensorError("there are no tensors to write; a folder needs at least one")
    if len(groups) == 1:
        return [Shard(SINGLE_FILE, tuple(groups[0]))]
    return [
        Shard(f"model-{number:05}-of-{len(groups):05}.safetensors", tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


class FolderWriter:
    """Writes planned shards into a folder, each tensor as it comes, and at the end their index.

    A context manager. Leaving it with an error, or with a tensor not yet written (TensorError), removes the files
    it wrote and nothing else; leaving it otherwise syncs everything to disk. The folder must be there and should
    be one that `building` gave, so that it gets its name when it is whole.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard]):
        self._folder = folder
        self._shards = shards
        self._planned = [(shard, spec) for shard in shards for spec in shard.specs]
        self._written = 0
        self._file: BinaryIO | None = None
        self._starts: dict[str, int] = {}
        self._paths: list[Path] = []

    def __enter__(self) -> "FolderWriter":
        return self

    def write(self, name: str, array: np.ndarray) -> None:
        """Writes the next planned tensor, of any strides.

        Raises TensorError if it is not the next one, or of another shape or type than planned.
        """
        if self._written == len(self._planned):
            raise TensorError(f"{self._folder}: tensor {name!r} was written after the last planned one; plan it too")
        shard, spec = self._planned[self._written]
        path = self._folder / shard.file_name
        if name != spec.name:
            raise TensorError(f"{path}: tensor {name!r} came where {spec.name!r} was planned; write in planned order")
        if (array.shape, array.dtype) != (spec.shape, spec.dtype):
            raise TensorError(
                f"{path}: tensor {name!r} is {array.dtype} of shape {array.shape}; "
                f"planned was {spec.dtype} of shape {spec.shape}"
            )
        if self._file is None:
            self._file = self._begin(path, shard.specs)
        self._file.seek(self._starts[name])
        for chunk in _array_chunks(array):
            self._file.write(chunk)
        self._written += 1
        if name == shard.specs[-1].name:
            self._finish()

    def __exit__(self, error_type: object, error: object, traceback: object) -> None:
        whole = False
        try:
            if error_type is None:
                self._complete()
                whole = True
        finally:
            for path in () if whole else self._paths:
                path.unlink(missing_ok=True)
            if self._file is not None:
                self._file.close()

    def _begin(self, path: Path, specs: Sequence[TensorSpec]) -> BinaryIO:
        header, self._starts = _lay_out(specs)
        file = path.open("xb")
        self._paths.append(path)
        file.write(header)
        return file

    def _finish(self) -> None:
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None

    def _complete(self) -> None:
        """Writes the index and syncs the folder. Raises TensorError for a planned tensor that never came."""
        if self._written < len(self._planned):
            shard, spec = self._planned[self._written]
            raise TensorError(f"{self._folder / shard.file_name}: planned tensor {spec.name!r} was not written")
        if len(self._shards) > 1:
            path = self._folder / INDEX_FILE
            with path.open("x", encoding="utf-8") as file:
                self._paths.append(path)
                file.write(_render_index(self._shards))
                file.flush()
                os.fsync(file.fileno())
        _sync_folder(self._folder)


def compare_folder(folder: str | Path, expected: Iterable[tuple[str, np.ndarray]]) -> None:
    """Reads a folder back and compares it with what it should hold, bit for bit (NaN equals the same NaN).

    Beside the expected arrays, which are taken one at a time, it holds a few MiB.

    Raises TensorError naming the first tensor that is missing, of another shape, type or value, or left over.
    """
    found = open_folder(folder)
    left = set(found.names)
    for name, array in expected:
        stored = found.stored(name)
        left.discard(name)
        if (stored.shape, found.dtype(name)) != (array.shape, array.dtype):
            raise TensorError(
                f"{stored.file}: tensor {name!r} is {stored.dtype} of shape {stored.shape}; "
                f"it should be {array.dtype} of shape {array.shape}. Export it again"
            )
        if not _holds(stored, array):
            raise TensorError(
                f"{stored.file}: tensor {name!r} does not read back as it should be; check the disk and export it again"
            )
        del array  # or the next one would be made while this one is held
    if left:
        name = min(left)
        raise TensorError(f"{found.file_of(name)} holds tensor {name!r}, which it should not; export it again")


@contextmanager
def building(place: str | Path) -> Iterator[Path]:
    """A folder to fill under another name beside `place`, which gets its name when the block ends without an error.

    After an error it is removed, so that nothing half written ever has the name. What killed processes left of
    the same place is removed at the start.

    Raises TensorError if `place` is a file or a folder with something in it, before the block or after it.
    """
    place = Path(place).resolve()
    _check_free(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{place.name}.unfinished-"
    for stale in [path for path in place.parent.iterdir() if path.name.startswith(prefix)]:
        if not _is_alive(stale.name.removeprefix(prefix).partition("-")[0]):
            shutil.rmtree(stale, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{prefix}{os.getpid()}-") as scratch:
        fresh = Path(scratch) / "new"  # with the usual permissions; the temporary folder is its owner's alone
        fresh.mkdir()
        yield fresh
        _check_free(place)
        _sync_folder(fresh)
        fresh.rename(place)
        _sync_folder(place.parent)


def _is_alive(process: str) -> bool:
    """Whether the process that left a folder still runs, on this machine."""
    try:
        os.kill(int(process), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # someone else's
        return True
    return True


def _holds(stored: StoredTensor, array: np.ndarray) -> bool:
    """True if the stored bytes are the array's."""
    with stored.file.open("rb") as file:
        file.seek(stored.start)
        return all(
            np.array_equal(np.frombuffer(file.read(len(chunk)), np.uint8), np.frombuffer(chunk, np.uint8))
            for chunk in _array_chunks(array)
        )


def _check_free(place: Path) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise TensorError(f"{place} already exists and is not an empty folder; remove it or give another place")


def _check_spec(spec: TensorSpec, seen: set[str]) -> None:
    if spec.dtype not in _NAMES:
        raise TensorError(
            f"tensor {spec.name!r} is {spec.dtype}; written are {', '.join(str(dtype) for dtype in _NAMES)}"
        )
    if spec.name in seen or spec.name in ("", "__metadata__"):
        raise TensorError(f"tensor name {spec.name!r} is empty, reserved, or planned twice; give every tensor its own")


def _lay_out(specs: Sequence[TensorSpec]) -> tuple[bytes, dict[str, int]]:
    """The start of a file up to its first tensor, and the byte at which each tensor starts.

    Wider types come first and the header ends at a multiple of 8, so that every tensor starts at a multiple of its
    own width: readers that map the file need that.
    """
    ends = 0
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers 4 refuses a file without it
    offsets: dict[str, int] = {}
    for spec in sorted(specs, key=lambda spec: -spec.dtype.itemsize):
        offsets[spec.name] = ends
        ends += spec.size_bytes
        entries[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offsets[spec.name], ends],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + offset for name, offset in offsets.items()}


def _render_index(shards: Sequence[Shard]) -> str:
    specs = [spec for shard in shards for spec in shard.specs]
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(spec.shape) for spec in specs),
            "total_size": sum(spec.size_bytes for spec in specs),
        },
        "weight_map": {spec.name: shard.file_name for shard in shards for spec in shard.specs},
    }
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def _array_chunks(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in C order, a few MiB at a time where its first axis allows."""
    if array.flags.c_contiguous:
        data = array.reshape(-1).view(np.uint8).data
        for start in range(0, len(data), CHUNK_BYTES):
            yield data[start : start + CHUNK_BYTES]
    else:
        rows = max(1, CHUNK_BYTES // (array.nbytes // len(array)))
        for start in range(0, len(array), rows):
            yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder last, as the contents of its files do."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
