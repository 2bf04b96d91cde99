"""Parameters out of a Hugging Face folder and back into one, a tensor at a time.

Loading fills the shards of one of our parameters after the other, so that the host holds the parameters it is
responsible for, one stack of layers more, and one tensor. Nothing is read before every name, shape and type fits.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from model.config import ModelConfig
from model.hf.family import Family, HubTensor, Slot, constant_tensors, hub_tensors, is_ignored
from model.hf.tensor_file import TensorError
from model.hf.tensors import TensorFolder
from model.parallel import AxisRules
from model.transformer import Params, abstract

Index = tuple[slice, ...]
BLOCK = 128
"""Numbers along each side of a block that is transposed at once."""


class Source(NamedTuple):
    """A folder whose tensors are known to fit a model."""

    folder: TensorFolder
    family: Family
    cfg: ModelConfig
    tensors: tuple[HubTensor, ...]
    stored_names: Mapping[str, str]
    """Name in the family's table -> name in the folder."""


def check_folder(folder: TensorFolder, family: Family, cfg: ModelConfig) -> Source:
    """The folder as a source of this model's parameters, compared by names, shapes and types; nothing large is read.

    Raises TensorError naming file and tensor: one that is missing, left over, of another shape or of a type that is
    not read, a head that differs from the embedding it is tied to, a constant of the arithmetic with another value.
    """
    tensors = tuple(hub_tensors(family, cfg))
    constants = constant_tensors(family, cfg)
    stored = _stored_names(folder, family)
    for name, shape in [(each.name, each.shape) for each in (*tensors, *constants)]:
        if name not in stored:
            near = f"; it does hold {min(stored)!r}" if stored else ""
            raise TensorError(
                f"{folder.path} holds no tensor {name!r}, which a {family.model_type} of {cfg.num_layers} layers has"
                f"{near}. Download the folder again, or mend config.json"
            )
        found = folder.shape(stored[name])
        if found != shape:
            raise TensorError(
                f"{folder.file_of(stored[name])}: tensor {stored[name]!r} has shape {found}; "
                f"config.json asks for {shape}"
            )
        folder.dtype(stored[name])
    for each in constants:
        value = folder.read(stored[each.name], np.float32)
        if not np.allclose(value, each.value, rtol=2**-8, atol=0):  # eight bits: they are kept as bfloat16
            raise TensorError(
                f"{folder.file_of(stored[each.name])}: {each.name} is {value.tolist()}; polytune computes {each.value}"
            )
    source = Source(folder, family, cfg, tensors, stored)
    _check_left_over(source, {each.name for each in (*tensors, *constants)})
    return source


def load_params(source: Source, axes: AxisRules, *, dtype: np.dtype, cfg: ModelConfig | None = None) -> Params:
    """The folder's parameters in `dtype`, on the mesh in use. `cfg`: the same model with vocabulary padding.

    Rows of padding are zero. Raises TensorError for a file that cannot be read to its end.
    """
    cfg = source.cfg if cfg is None else cfg
    leaves = {_path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract(cfg, axes))}
    groups: dict[tuple[tuple[str, ...], ...], list[HubTensor]] = {}
    for tensor in source.tensors:
        groups.setdefault(tuple(slot.path for slot in tensor.slots), []).append(tensor)
    merged = _merge_overlapping(groups)
    # The largest first: what is held beside finished parameters is largest while few are finished.
    merged.sort(key=lambda group: -sum(leaves[path].size for path in group[0]))
    loaded: dict[tuple[str, ...], jax.Array] = {}
    for paths, tensors in merged:
        shards = {path: _Shards(leaves[path], dtype) for path in paths}
        for tensor in tensors:
            array = source.folder.read(source.stored_names[tensor.name], dtype)
            for slot, part in zip(tensor.slots, tensor.split(array), strict=True):
                shards[slot.path].fill(slot, part)
            del array
        loaded |= {path: each.finish() for path, each in shards.items()}
    params: Params = {}
    for path, leaf in loaded.items():
        place = params
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = leaf
    return params


def read_tensors(
    family: Family, cfg: ModelConfig, params: Params, dtypes: Mapping[str, np.dtype]
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the folder that these parameters make, in its dtype, one at a time, on the host.

    Raises TensorError for a number that its dtype cannot hold.
    """
    for tensor in hub_tensors(family, cfg):
        array = tensor.join([_fetch(params, slot) for slot in tensor.slots])
        yield tensor.name, _cast(tensor.name, array, dtypes[tensor.name])
    for each in constant_tensors(family, cfg):
        yield each.name, np.full(each.shape, each.value, dtypes[each.name])


class _Shards:
    """The pieces of one parameter that this process's devices hold, being filled."""

    def __init__(self, leaf: jax.ShapeDtypeStruct, dtype: np.dtype):
        mesh: Any = jax.sharding.get_mesh()
        spec = leaf.sharding.spec if leaf.sharding is not None else jax.sharding.PartitionSpec()
        self._sharding = jax.sharding.NamedSharding(mesh, spec)
        self._shape = leaf.shape
        self._devices = self._sharding.addressable_devices_indices_map(leaf.shape)
        self._pieces: dict[tuple[tuple[int, int], ...], np.ndarray] = {}
        for index in self._devices.values():
            bounds = self._bounds(index)
            if bounds not in self._pieces:
                self._pieces[bounds] = _aligned_zeros(tuple(stop - start for start, stop in bounds), dtype)

    def fill(self, slot: Slot, part: np.ndarray) -> None:
        """Puts one layer's (or expert's) array into every piece that holds some of it."""
        lead = len(slot.index)
        for bounds, piece in self._pieces.items():
            if not all(start <= at < stop for at, (start, stop) in zip(slot.index, bounds[:lead], strict=True)):
                continue
            place = tuple(at - start for at, (start, _) in zip(slot.index, bounds[:lead], strict=True))
            taken = tuple(
                slice(start, min(stop, size)) for (start, stop), size in zip(bounds[lead:], part.shape, strict=True)
            )
            rows = part[(*taken, ...)]  # the dots: a scalar stays an array
            copy_blockwise(piece[(*place, *(slice(0, size) for size in rows.shape), ...)], rows)

    def finish(self) -> jax.Array:
        """The parameter on its devices. The pieces are handed over: where memory is shared they are the array."""
        arrays = [jax.device_put(self._pieces[self._bounds(index)], device) for device, index in self._devices.items()]
        self._pieces = {}
        whole = jax.make_array_from_single_device_arrays(self._shape, self._sharding, arrays)
        return jax.block_until_ready(whole)  # the host's copies are free before the next are made

    def _bounds(self, index: Index | None) -> tuple[tuple[int, int], ...]:
        return tuple(each.indices(size)[:2] for each, size in zip(index or (), self._shape, strict=True))


def copy_blockwise(target: np.ndarray, source: np.ndarray) -> None:
    """target[...] = source, in blocks that stay in the cache if source is transposed: three times as fast.

    Most tensors are linear layers, which the two sides store the other way round.
    """
    strides = np.array(source.strides)
    across, along = int(np.argmin(strides)) if source.ndim > 1 else 0, source.ndim - 1
    if across == along or source.ndim < 2:
        target[...] = source
        return
    others = [range(size) if axis not in (across, along) else (0,) for axis, size in enumerate(source.shape)]
    for at in itertools.product(*others):
        index: list[Any] = list(at)
        for block in itertools.product(_blocks(source.shape[across]), _blocks(source.shape[along])):
            index[across], index[along] = block
            target[tuple(index)] = source[tuple(index)]


def _blocks(size: int) -> list[slice]:
    return [slice(start, start + BLOCK) for start in range(0, size, BLOCK)]


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that start at a multiple of 64 bytes: a CPU device takes them as they are."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _merge_overlapping(
    groups: Mapping[tuple[tuple[str, ...], ...], list[HubTensor]],
) -> list[tuple[tuple[tuple[str, ...], ...], list[HubTensor]]]:
    """Groups that share a parameter become one: it is finished once, after all its tensors."""
    merged: list[tuple[set[tuple[str, ...]], list[HubTensor]]] = []
    for paths, tensors in groups.items():
        touching = [each for each in merged if each[0] & set(paths)]
        merged = [each for each in merged if not each[0] & set(paths)]
        joined = set(paths).union(*(each[0] for each in touching))
        merged.append((joined, [*itertools.chain.from_iterable(each[1] for each in touching), *tensors]))
    return [(tuple(sorted(paths)), tensors) for paths, tensors in merged]


def _stored_names(folder: TensorFolder, family: Family) -> dict[str, str]:
    """Names as the family's table has them -> names in the folder, which may have or lack the family's prefix."""
    return {name.removeprefix(family.optional_prefix): name for name in folder.names if not is_ignored(family, name)}


def _check_left_over(source: Source, expected: set[str]) -> None:
    folder, head = source.folder, source.family.names["head.weight"]
    left = sorted(set(source.stored_names) - expected)
    if source.cfg.tied_head and head in left:
        left.remove(head)
        table = source.stored_names[source.family.names["embedding.weight"]]
        if not _are_equal(folder, source.stored_names[head], table):
            raise TensorError(
                f"{folder.file_of(source.stored_names[head])}: {head} differs from {table}, but config.json ties them "
                "(tie_word_embeddings); set that to false if the head is one of its own"
            )
    if left:
        raise TensorError(
            f"{folder.file_of(source.stored_names[left[0]])} holds tensor {left[0]!r}"
            f"{f' and {len(left) - 1} more' if len(left) > 1 else ''}, which a {source.family.model_type} with this "
            "config.json does not have: it would be lost. Mend config.json, or give the folder that belongs to it"
        )


def _are_equal(folder: TensorFolder, first: str, second: str, *, rows: int = 4096) -> bool:
    if folder.shape(first) != folder.shape(second):
        return False
    total = folder.shape(first)[0]
    return all(
        np.array_equal(
            folder.read_slice(first, at, min(at + rows, total), np.float32),
            folder.read_slice(second, at, min(at + rows, total), np.float32),
        )
        for at in range(0, total, rows)
    )


def _fetch(params: Params, slot: Slot) -> np.ndarray:
    """One slot's array on the host, without the padding its parameter may have."""
    leaf: Any = params
    for key in slot.path:
        leaf = leaf[key]
    for at in slot.index:
        leaf = _take(leaf, at)
    whole = np.asarray(leaf)
    return whole[(*(slice(0, size) for size in slot.shape), ...)]


@jax.jit
def _take(stack: jax.Array, at: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, at, keepdims=False)


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    cast = np.empty(array.shape, dtype)
    with np.errstate(over="ignore"):  # looked at below
        copy_blockwise(cast, array)
    if cast.dtype != array.dtype and not np.array_equal(np.isfinite(cast), np.isfinite(array)):
        raise TensorError(
            f"tensor {name!r} holds numbers that {dtype} cannot; export in a wider type, e.g. --dtype bfloat16"
        )
    return cast


def _path_of(path: Sequence[Any]) -> tuple[str, ...]:
    return tuple(part.key for part in path)
