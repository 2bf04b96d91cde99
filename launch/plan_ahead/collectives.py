"""What chips send each other in one step, by mesh axis: read from the compiled program's replica groups."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from launch.plan_ahead.hlo import Program, Shape, Visit

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


class Traffic(NamedTuple):
    """All collectives of one kind over the same mesh axes."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes along which its groups of chips differ."""
    times: int
    """How many run in one step."""
    moved_bytes: int
    """What one chip sends for them in one step, by the algorithm that sends least (a ring)."""


def moved_by_ring(kind: str, operand_bytes: int, group: int) -> int:
    """What each chip of a group sends: n - 1 of n parts once, or twice for an all-reduce.

    Of 8 chips with 1 MB each an all-gather sends 7 MB, a reduce-scatter 7/8 MB, an all-reduce 14/8 MB.
    """
    parts = {
        "all-gather": group - 1.0,
        "all-reduce": 2 * (group - 1) / group,
        "collective-permute": 1.0,
    }
    return round(operand_bytes * parts.get(kind, (group - 1) / group))


def list_traffic(program: Program, mesh_shape: Mapping[str, int]) -> list[Traffic]:
    """Every kind of collective and set of axes in the program, largest first."""
    totals: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
    seen: set[tuple[str, str, str]] = set()
    for visit in program.visits():
        item = visit.instruction
        kind = item.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        channel = re.search(r"channel_id=(\d+)", item.attributes)
        # A TPU spreads one collective over the fusions that run meanwhile; each of them names its channel.
        key = (visit.owner, kind, channel.group(1) if channel else item.name)
        if key in seen:
            continue
        seen.add(key)
        groups_GN = read_groups(item.attributes, math.prod(mesh_shape.values()))
        axes = varying_axes(groups_GN, mesh_shape)
        if not axes:
            continue  # groups of one chip: nothing is sent
        kind = "reduce-scatter" if _is_scattered(visit) else kind
        sent = moved_by_ring(kind, _bytes(visit.computation.operand_shapes(item)), groups_GN.shape[1])
        count, moved = totals.get((kind, axes), (0, 0))
        totals[kind, axes] = (count + visit.times, moved + visit.times * sent)
    traffic = [Traffic(kind, axes, count, moved) for (kind, axes), (count, moved) in totals.items()]
    return sorted(traffic, key=lambda item: -item.moved_bytes)


def moved_by_axes(traffic: list[Traffic]) -> dict[tuple[str, ...], int]:
    """Bytes that one chip sends in one step along each set of mesh axes."""
    return {axes: sum(t.moved_bytes for t in traffic if t.axes == axes) for axes in {t.axes: None for t in traffic}}


def varying_axes(groups_GN: np.ndarray, mesh_shape: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ. Chips are numbered as the mesh lays them out.

    On a mesh of fsdp 2 and tensor 4, groups ((0 1 2 3) (4 5 6 7)) differ along tensor, ((0 4) ...) along fsdp.
    """
    places = np.unravel_index(groups_GN, tuple(mesh_shape.values()))
    return tuple(name for name, place_GN in zip(mesh_shape, places, strict=True) if np.any(place_GN != place_GN[:, :1]))


def read_groups(attributes: str, chips: int) -> np.ndarray:
    """The groups of chips (groups, chips in each) of a collective's attributes, in any of XLA's spellings.

    Listed: {{0,1},{2,3}}; strided: [2,4]<=[4,2]T(1,0); by axes of a mesh: mesh['a'=2,'b'=4] {'b'}; none: all chips.
    Pairs of a permutation are groups of two. Raises ValueError for a spelling that is none of these.
    """
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes):
        return _listed(pairs.group(1))
    text = attributes.partition("replica_groups=")[2]
    if not text or text.startswith("{}"):
        return np.arange(chips)[None]
    if listed := re.match(r"\{(\{[\d,{} ]*\})\}", text):
        return _listed(listed.group(1))
    if strided := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](T\(([\d,]+)\))?", text):
        return _strided(_numbers(strided.group(2)), strided.group(4)).reshape(_numbers(strided.group(1)))
    if meshed := re.match(r"mesh\[([^\]]*)\](.*?)\{([^}]*)\}", text):
        return _meshed(*meshed.groups())
    raise ValueError(f"the compiled program names groups of chips in a way that is not known: {text[:120]!r}")


def _listed(text: str) -> np.ndarray:
    return np.array([_numbers(group) for group in re.findall(r"\{([\d, ]+)\}", text)])


def _strided(sizes: list[int], order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(sizes)).reshape(sizes)
    return ids.transpose(_numbers(order)) if order else ids


def _meshed(axes: str, ids: str, chosen: str) -> np.ndarray:
    """Groups along some axes of XLA's own mesh, or along parts of them: 'a':(2)4 is the 4 after the first 2 of a."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.\-]+)'?=(\d+)", axes)}
    devices = np.arange(math.prod(sizes.values()))
    if found := re.search(r"device_ids=\(?\[([\d,]+)\](?:<=\[([\d,]+)\])?(?:T\(([\d,]+)\))?", ids):
        devices = _strided(_numbers(found.group(2) or found.group(1)), found.group(3)).reshape(-1)
    parts: dict[str, tuple[int, int]] = {}
    for name, before, size in re.findall(r"'?([\w.\-]+)'?(?::\((\d+)\)(\d+))?", chosen):
        parts[name] = (int(before), int(size)) if before else (1, sizes[name])
    dims, group_axes = [], []
    for name, size in sizes.items():
        before, inner = parts.get(name, (size, 1))
        group_axes.append(len(dims) + 1)
        dims += [before, inner, size // before // inner]
    groups = devices.reshape(dims)
    count = math.prod(dims[axis] for axis in group_axes)
    return np.moveaxis(groups, group_axes, range(-len(group_axes), 0)).reshape(-1, count)


def _is_scattered(visit: Visit) -> bool:
    """Whether an all-reduce lies in a fusion that keeps a slice of it only: a TPU's spelling of reduce-scatter."""
    inside: Any = visit.computation.instructions.values()
    return (
        visit.instruction.opcode == "all-reduce"
        and visit.is_fused
        and any(item.opcode == "dynamic-slice" for item in inside)
    )


def _bytes(shapes: list[Shape]) -> int:
    return sum(shape.size_bytes for shape in shapes)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.replace(" ", "").split(",") if number]
