"""The tensors of a Hugging Face folder, in one file or in shards with an index, checked before any is read."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from model.hf.tensor_file import (
    StoredTensor,
    TensorError,
    TensorFile,
    array_dtype,
    convert_json,
    open_file,
    parse_json,
    read_tensor,
)

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


class TensorFolder(msgspec.Struct, frozen=True, kw_only=True):
    """All tensors of a folder by name. Every method raises TensorError for a name that is not there."""

    path: Path
    files: tuple[TensorFile, ...]
    tensors: Mapping[str, StoredTensor]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, file by file, in the order of the bytes."""
        return tuple(self.tensors)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as they are stored."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())

    def stored(self, name: str) -> StoredTensor:
        """Where and how this tensor is stored, of whatever type."""
        if name not in self.tensors:
            raise TensorError(
                f"{self.path} holds no tensor {name!r} (it holds {_some(self.names)}); the model needs it: "
                "give the folder that this config.json belongs to"
            )
        return self.tensors[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self.stored(name).shape

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.stored(name).file

    def dtype(self, name: str) -> np.dtype:
        """The type of a tensor. Raises TensorError if it is none of `DTYPES`: integers, quantised weights."""
        return array_dtype(self.stored(name))

    def read(self, name: str, dtype: np.dtype | type | str | None = None) -> np.ndarray:
        """A tensor as a new array in C order, aligned as XLA wants it, cast to `dtype` if one is given.

        Raises TensorError for a type that is not read, a finite value beyond the range of `dtype`, and a file that
        became shorter since it was opened. Beside the result, a cast holds a few MiB.
        """
        return read_tensor(self.stored(name), shape=self.shape(name), dtype=dtype)

    def read_slice(self, name: str, start: int, stop: int, dtype: np.dtype | type | str | None = None) -> np.ndarray:
        """`read(name)[start:stop]`, of which only those bytes are read. Raises like `read`, and for a bad range."""
        shape = self.shape(name)
        if not shape or not 0 <= start <= stop <= shape[0]:
            raise TensorError(
                f"{self.file_of(name)}: rows {start} to {stop} of tensor {name!r} were asked for; its shape is {shape}"
            )
        skipped = start * math.prod(shape[1:])
        return read_tensor(self.stored(name), shape=(stop - start, *shape[1:]), skipped=skipped, dtype=dtype)


def open_folder(folder: str | Path) -> TensorFolder:
    """The tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.

    Every header is read and checked against its file and the index before this returns; no tensor is read yet.
    Where there is an index it decides, and files that it does not name (`consolidated.safetensors`, shards of an
    earlier save) are not read; without one only `model.safetensors` is.

    Raises TensorError for a folder without either, one that has both and an index that does not name the file,
    a shard or tensor that is missing, left over, in another shard or twice, and anything `open_file` raises for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise TensorError(f"{folder} is not a folder; give one with a {SINGLE_FILE} or a {INDEX_FILE}")
    if (folder / INDEX_FILE).exists():
        files = _open_indexed(folder)
    elif (folder / SINGLE_FILE).exists():
        files = (open_file(folder / SINGLE_FILE),)
    else:
        raise TensorError(_explain_missing(folder))
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    return TensorFolder(path=folder, files=files, tensors=tensors)


def _open_indexed(folder: Path) -> tuple[TensorFile, ...]:
    path = folder / INDEX_FILE
    index = parse_json(path, path.read_bytes(), "the index")
    where = convert_json(path, index.get("weight_map"), dict[str, str], "its weight_map")
    names = sorted(set(where.values()))
    for name in names:
        if not re.fullmatch(r"[^/\\\0]+\.safetensors", name):
            raise TensorError(f"{path} names the file {name!r}; only names ending in .safetensors beside it are read")
        if not (folder / name).is_file():
            held = [tensor for tensor, file in where.items() if file == name]
            raise TensorError(
                f"{folder / name} is missing; the index says that it holds {_some(held)}. Download or export it again"
            )
    if SINGLE_FILE not in names and (folder / SINGLE_FILE).exists():
        raise TensorError(
            f"{folder} holds {SINGLE_FILE} and a {INDEX_FILE} that does not name it: two sets of weights; "
            "move the one that is not meant elsewhere"
        )
    files = tuple(open_file(folder / name) for name in names)
    _check_index(path, where, files)
    _check_total(path, index.get("metadata"), files)
    return files


def _check_index(path: Path, where: Mapping[str, str], files: tuple[TensorFile, ...]) -> None:
    """Raises TensorError unless every tensor is in the file the index names and in no other."""
    for file in files:
        for name in file.tensors:
            if name not in where:
                raise TensorError(
                    f"{file.path} holds tensor {name!r}, which {path.name} does not list; download the folder again, "
                    "all files from one revision"
                )
            if where[name] != file.path.name:
                raise TensorError(
                    f"{file.path} holds tensor {name!r}, which {path.name} says is in {where[name]}; download the "
                    "folder again, all files from one revision"
                )
    held = {name for file in files for name in file.tensors}
    lost = next((name for name in where if name not in held), None)
    if lost is not None:
        raise TensorError(
            f"{path.parent / where[lost]} does not hold tensor {lost!r}, which {path.name} says it does; download it "
            "again, or take the entry out of the index if the model ties this tensor to another"
        )


def _check_total(path: Path, metadata: Any, files: tuple[TensorFile, ...]) -> None:
    """Raises TensorError unless `total_size`, if given, is the bytes of all tensors, or of all files (from MLX)."""
    given = metadata.get("total_size") if isinstance(metadata, dict) else None
    tensor_bytes = sum(tensor.size_bytes for file in files for tensor in file.tensors.values())
    if given not in (None, tensor_bytes, sum(file.size_bytes for file in files)):
        raise TensorError(
            f"{path} gives a total_size of {given!r}; the tensors it lists have {tensor_bytes} bytes, so some may be "
            "lost. Download the folder again, or correct the number if none is"
        )


def _explain_missing(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir() if path.is_file())
    pickles = [name for name in found if Path(name).suffix in _PICKLES and name != "training_args.bin"]
    if pickles:
        return (
            f"{folder} holds its weights as {_some(pickles)}; a pickle can run any code and is never read. Where you "
            "trust it, transformers' `AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)` converts it"
        )
    return (
        f"{folder} holds no {SINGLE_FILE} and no {INDEX_FILE} (it holds {_some(found)}); give a folder in the form "
        "that transformers saves"
    )


def _some(names: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(repr(name) for name in names[:3]) or "nothing"
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
