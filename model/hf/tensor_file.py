"""One safetensors file: its header checked whole before a tensor is read, its tensors read one at a time.

Not by the safetensors library: it maps files whole, so that host memory grows by the model, and its errors name
neither the file nor the tensor. Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections import Counter
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import msgspec
import numpy as np

ALIGNMENT = 64
"""Bytes: what XLA on CPU asks of a NumPy array to use its memory as it is, without a copy."""
CHUNK_BYTES = 8 << 20

DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""What is read, by its name in a file. A file may hold others as long as nobody reads them."""
_OTHER_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_BITS: Mapping[str, int] = _OTHER_BITS | {name: dtype.itemsize * 8 for name, dtype in DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_RANK = 64  # NumPy's
_MAX_BYTES = 2**63 - 1


class TensorError(ValueError):
    """A folder or file of tensors that is missing, damaged, or not what was needed. Names the file and the tensor."""


class _Entry(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class StoredTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Where one tensor lies: `size_bytes` from byte `start` of the file, in C order, little-endian."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class TensorFile(msgspec.Struct, frozen=True, kw_only=True):
    """One safetensors file whose header was checked; `tensors` in the order of their bytes."""

    path: Path
    size_bytes: int
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str]


def open_file(path: Path) -> TensorFile:
    """The tensors of one safetensors file, none of them read.

    Raises TensorError unless the header is JSON of the right form, no name comes twice, every size is what shape
    and type give, and the tensors cover the rest of the file without gap, overlap or a byte left over.
    """
    if not path.is_file():  # a pipe or device would block
        raise TensorError(f"{path} is missing or not a file; download or export the folder again")
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        file.seek(0)
        header, data_start = _read_header(path, file, size_bytes)
    metadata = convert_json(path, header.pop("__metadata__", None), dict[str, str] | None, "its metadata")
    tensors = [_parse_entry(path, name, raw, data_start) for name, raw in header.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    _check_layout(path, tensors, data_start=data_start, size_bytes=size_bytes)
    by_name = {tensor.name: tensor for tensor in tensors}
    return TensorFile(path=path, size_bytes=size_bytes, tensors=by_name, metadata=metadata or {})


def array_dtype(tensor: StoredTensor) -> np.dtype:
    """The NumPy type of a tensor. Raises TensorError if it is none of `DTYPES`: integers, quantised weights."""
    if tensor.dtype not in DTYPES:
        raise TensorError(
            f"{tensor.file}: tensor {tensor.name!r} is stored as {tensor.dtype}; weights are read as "
            f"{', '.join(DTYPES)}. Use the model's unquantised weights, or convert these with the tool that made them"
        )
    return DTYPES[tensor.dtype]


def _read_header(path: Path, file: BinaryIO, size_bytes: int) -> tuple[dict[str, Any], int]:
    start = file.read(8)
    if start == b"version ":
        raise TensorError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository")
    length = int.from_bytes(start, "little")
    if size_bytes < 8 or length > size_bytes - 8:
        raise TensorError(
            f"{path} has {size_bytes} bytes and a header of {length}: it is cut short or not a safetensors file; "
            "download or export it again"
        )
    if length > _MAX_HEADER_BYTES:
        raise TensorError(
            f"{path} has a header of {length} bytes, more than the {_MAX_HEADER_BYTES} that safetensors allows; "
            "export it again"
        )
    return parse_json(path, file.read(length), "its header"), 8 + length


def parse_json(path: Path, content: bytes, what: str) -> dict[str, Any]:
    """The JSON object of these bytes; TensorError if it is none or has a key twice. `what` names it in errors."""

    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        "".join(found).encode()  # half a surrogate pair can be read but not written
        if len(found) < len(pairs):
            name = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise TensorError(f"{path}: {what} lists {name!r} twice; export it again")
        return found

    try:
        parsed = json.loads(content.decode(), object_pairs_hook=without_repeats)
    except TensorError:
        raise
    except (ValueError, RecursionError) as error:
        raise TensorError(
            f"{path}: {what} is not JSON ({error}); the file is damaged or of another kind: download or export it again"
        ) from error
    if not isinstance(parsed, dict):
        raise TensorError(f"{path}: {what} is a JSON {type(parsed).__name__}, not an object; export it again")
    return parsed


def convert_json(path: Path, raw: Any, wanted: Any, what: str) -> Any:
    """A parsed value as the type `wanted`; TensorError if it is of another form."""
    try:
        return msgspec.convert(raw, wanted)
    except msgspec.ValidationError as error:
        raise TensorError(
            f"{path}: {what} is not of the form safetensors asks for ({error}); export it again"
        ) from error


def _parse_entry(path: Path, name: str, raw: Any, data_start: int) -> StoredTensor:
    """The entry of one tensor, its size what shape and type give, its offsets counted from the start of the file."""
    entry = convert_json(path, raw, _Entry, f"the header of tensor {name!r}")
    if entry.dtype not in _BITS:
        raise TensorError(
            f"{path}: tensor {name!r} has the unknown type {entry.dtype!r}; weights are read as {', '.join(DTYPES)}"
        )
    start, stop = entry.data_offsets
    if not _is_possible(entry.shape) or not 0 <= start <= stop <= _MAX_BYTES:
        raise TensorError(
            f"{path}: tensor {name!r} has the impossible shape {_abridged(entry.shape)} or offsets "
            f"{_abridged(entry.data_offsets)}; download or export it again"
        )
    needed_bytes, rest = divmod(math.prod(entry.shape) * _BITS[entry.dtype], 8)
    if rest or stop - start != needed_bytes:
        raise TensorError(
            f"{path}: tensor {name!r} of {entry.dtype} and shape {list(entry.shape)} needs {needed_bytes} bytes; "
            f"its offsets {start} to {stop} hold {stop - start}. Download or export it again"
        )
    return StoredTensor(
        file=path, name=name, dtype=entry.dtype, shape=entry.shape, start=data_start + start, size_bytes=needed_bytes
    )


def _is_possible(shape: tuple[int, ...]) -> bool:
    """True if NumPy can make an array of this shape; one with no elements must be small without its zeros, too."""
    if len(shape) > _MAX_RANK or min(shape, default=0) < 0:
        return False
    return math.prod(max(size, 1) for size in shape) * 8 <= _MAX_BYTES


def _check_layout(path: Path, tensors: list[StoredTensor], *, data_start: int, size_bytes: int) -> None:
    """Raises TensorError unless tensors sorted by start cover the file from `data_start` to its end."""
    end = data_start
    for tensor in tensors:
        stop = tensor.start + tensor.size_bytes
        if stop > size_bytes:
            raise TensorError(
                f"{path} has {size_bytes} bytes; tensor {tensor.name!r} ends at byte {stop}: "
                "the file is cut short; download or export it again"
            )
        if tensor.start != end:
            found = "overlaps the tensor before it" if tensor.start < end else "leaves a gap before it"
            raise TensorError(
                f"{path}: tensor {tensor.name!r} starts at byte {tensor.start}, not {end}: it {found}; export it again"
            )
        end = stop
    if end != size_bytes:
        raise TensorError(
            f"{path} has {size_bytes} bytes; its last tensor ends at byte {end} and the rest belongs to none; "
            "download or export it again"
        )


def read_tensor(
    tensor: StoredTensor, *, shape: tuple[int, ...], skipped: int = 0, dtype: np.dtype | type | str | None = None
) -> np.ndarray:
    """A new array of `shape` from the elements after the first `skipped` ones: C order, aligned to `ALIGNMENT`.

    A cast to `dtype` goes through a buffer of `CHUNK_BYTES`, so no more than the result is held in memory.
    Raises TensorError for a type that is not read, a finite value beyond the range of `dtype`, and a file that
    became shorter since it was opened.
    """
    stored = array_dtype(tensor)
    wanted = stored if dtype is None else np.dtype(dtype)
    if wanted not in DTYPES.values():
        raise TensorError(
            f"{tensor.file}: tensor {tensor.name!r} was asked for as {wanted}; weights are read as "
            f"{', '.join(str(known) for known in DTYPES.values())}"
        )
    result = _aligned_empty(math.prod(shape), wanted)
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.start + skipped * stored.itemsize)
        if wanted == stored:
            _fill(file, result.view(np.uint8).data, tensor)
        else:
            _fill_cast(file, result, tensor=tensor, stored=stored)
    return result.reshape(shape)


def _fill_cast(file: FileIO, result: np.ndarray, *, tensor: StoredTensor, stored: np.dtype) -> None:
    step = CHUNK_BYTES // stored.itemsize
    buffer = _aligned_empty(min(step, result.size), stored)
    for first in range(0, result.size, step):
        target = result[first : first + step]
        source = buffer[: target.size]
        _fill(file, source.view(np.uint8).data, tensor)
        with np.errstate(over="ignore", invalid="ignore"):
            target[:] = source.astype(target.dtype)
        if not np.isfinite(target).all():
            lost = np.flatnonzero(np.isfinite(source) & ~np.isfinite(target))
            if lost.size:
                raise TensorError(
                    f"{tensor.file}: tensor {tensor.name!r} holds {float(source[lost[0]]):g}, beyond the range of "
                    f"{target.dtype}; read it as {stored} or float32"
                )


def _fill(file: FileIO, target: memoryview, tensor: StoredTensor) -> None:
    done = 0
    while done < len(target):
        count = file.readinto(target[done:])
        if not count:
            raise TensorError(
                f"{tensor.file} ends within tensor {tensor.name!r}: it became shorter after it was opened; "
                "do not change a folder that is being read"
            )
        done += count


def _aligned_empty(size: int, dtype: np.dtype) -> np.ndarray:
    buffer = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    skip = -buffer.ctypes.data % ALIGNMENT
    return buffer[skip : skip + size * dtype.itemsize].view(dtype)


def _abridged(shape: tuple[int, ...]) -> str:
    return str(list(shape)) if len(str(shape)) < 200 else f"{str(shape)[:200]}..."
