"""FLOPs of a compiled program's matrix products, and the bytes it moves to and from memory, loops multiplied out."""

import math
import re
from collections.abc import Mapping

from launch.plan_ahead.collectives import KINDS
from launch.plan_ahead.hlo import Computation, Instruction, Program, Shape

# They make no array, or another name for one.
_FREE = frozenset(
    {
        "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "conditional", "after-all",
        "partition-id", "replica-id", "opt-barrier", "async-start", "async-update",
    }
)  # fmt: skip
_KERNEL = 'custom_call_target="tpu_custom_call"'
_SPLASH = re.compile(r"splash_mha_(fwd|dq|dkv)\w*/pallas_call")
_SPLASH_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}
"""Matrix products for one pair of blocks: scores and weighted sums; in each kernel of the gradient the scores and the
weights' gradient again, and one product for what it is the gradient of."""
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}
"""What changes its first operand in place, and which operand holds the new values."""
# A TPU's fusions carry the arrays of a collective that goes on meanwhile from one to the next, untouched.
_HANDED_ON = ("tuple", "custom-call", *KINDS)


def count_flops(program: Program) -> int:
    """Floating-point operations of one chip in one step, a product and its sum as two; matrix products only.

    What stands beside them (norms, softmax, the optimizer) is done by other units of the chip, and costs bytes.
    Raises ValueError for a product in a call to a library, whose size its text does not tell.
    """
    return sum(visit.times * _flops(visit.instruction, visit.computation) for visit in program.visits())


def unknown_kernels(program: Program) -> list[str]:
    """Names of kernels that compute with numbers and do not say how many FLOPs they take; `count_flops` has none."""
    return sorted(
        {
            visit.instruction.name
            for visit in program.visits()
            if _KERNEL in visit.instruction.attributes
            and _estimate(visit.instruction, visit.computation) is None
            and any("f" in shape.dtype for shape in visit.computation.operand_shapes(visit.instruction))
        }
    )


def count_bytes(program: Program) -> int:
    """Bytes that one chip reads from and writes to its main memory in one step, at least.

    Each instruction, or fusion, reads its operands once and writes its results once; of an array that it only takes
    slices of, or updates in place, the slices. What the compiler keeps in nearer memory costs nothing, nor does what
    a collective that runs inside of fusions reads and writes. A kernel counts as if it read its operands once, though
    splash attention reads keys and values again for each block of queries.
    """
    return sum(
        visit.times * _bytes(visit.instruction, visit.computation, program.computations)
        for visit in program.visits()
        if not visit.is_fused
    )


def _flops(item: Instruction, computation: Computation) -> int:
    if item.opcode == "dot":
        left = computation.operand_shapes(item)[0].dims
        contracted = _list(item.attributes, "lhs_contracting_dims")
        return 2 * math.prod(item.shapes[0].dims) * math.prod(left[axis] for axis in contracted)
    if item.opcode == "convolution":
        return _convolution_flops(item, computation)
    if item.opcode == "ragged-dot":
        left, right = (shape.dims for shape in computation.operand_shapes(item)[:2])
        # Every row meets one group's matrix.
        return 2 * math.prod(left) * (math.prod(right) // right[0] // left[-1])
    if _KERNEL in item.attributes:
        return _estimate(item, computation) or 0
    if item.opcode == "custom-call" and re.search(r'custom_call_target="[^"]*(matmul|gemm|dot)', item.attributes, re.I):
        raise ValueError(f"the compiled program leaves a matrix product to a library: {item.attributes[:120]!r}")
    return 0


def _estimate(item: Instruction, computation: Computation) -> int | None:
    """FLOPs that a kernel states, as that for a mixture's products by group does (each row with one matrix), or that
    are known of it."""
    if splash := _SPLASH.search(item.attributes):
        return _splash_flops(splash.group(1), item, computation)
    stated = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', item.attributes)
    return int(stated.group(1)) if stated else None


def _splash_flops(part: str, item: Instruction, computation: Computation) -> int:
    """FLOPs of a splash attention kernel, which states none: of the pairs of blocks it visits, every one whole.

    Its first operand says which to visit, (1, n, w) for n blocks of queries that visit at most w of keys each (or the
    other way round): block i has i + 1 in its past, with a window no more than w. The third holds the queries (..., N,
    T, H). Where queries are a part of their rows, every block counts w.
    """
    shapes = [shape.dims for shape in computation.operand_shapes(item)]
    visited, queries, keys = sorted(shapes[0][-2:]), shapes[2], shapes[3]
    most, count = visited
    pairs = sum(min(i + 1, most) for i in range(count)) if queries[-2] == keys[-2] else most * count
    of_queries, of_keys, *_ = re.findall(r'block_(?:q|kv)(?:_d\w+)?\\?": (\d+)', item.attributes)
    per_pair = math.prod(queries[:-2]) * int(of_queries) * int(of_keys) * queries[-1]
    return 2 * _SPLASH_PRODUCTS[part] * pairs * per_pair


def _convolution_flops(item: Instruction, computation: Computation) -> int:
    """2 x outputs x input features x kernel places that meet the input: neither padding nor holes are computed.

    A TPU writes batched products as convolutions, batch dimensions as places with such holes between them.
    """
    left, right = (shape.dims for shape in computation.operand_shapes(item)[:2])
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.attributes)
    assert labels is not None, "a convolution names its dimensions"
    of_left, of_right, of_out = labels.groups()
    out = item.shapes[0].dims
    window = _window(item.attributes)
    places = 1
    for axis in (letter for letter in of_out if letter.isdigit()):
        places *= _meeting_places(
            inputs=left[of_left.index(axis)], outputs=out[of_out.index(axis)], window=window, axis=int(axis)
        )
    groups = re.search(r"batch_group_count=(\d+)", item.attributes)
    features = right[of_right.index("i")]
    per_place = out[of_out.index("b")] * out[of_out.index("f")] * features
    return 2 * per_place * places // (int(groups.group(1)) if groups else 1)


def _meeting_places(*, inputs: int, outputs: int, window: Mapping[str, list[str]], axis: int) -> int:
    """Pairs of an output and a kernel place, along one dimension, that lie on an input."""

    def at(key: str, default: int) -> int:
        return int(window[key][axis]) if key in window else default

    low = int(window["pad"][axis].split("_")[0]) if "pad" in window else 0
    size, stride, spread, dilation = at("size", 1), at("stride", 1), at("lhs_dilate", 1), at("rhs_dilate", 1)
    count = 0
    for output in range(outputs):
        for place in range(size):
            position = output * stride + place * dilation - low
            count += position >= 0 and position % spread == 0 and position // spread < inputs
    return count


def _window(attributes: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    pairs = (part.split("=") for part in found.group(1).split()) if found else ()
    return {key: value.split("x") for key, value in pairs}


def _bytes(item: Instruction, computation: Computation, computations: Mapping[str, Computation]) -> int:
    if item.opcode in _FREE or item.opcode.endswith("-done"):
        return 0
    shapes = [computation.instructions[name].shapes for name in item.operands]
    if item.opcode in _SLICES:
        return 2 * _in_hbm(item.shapes)
    if item.opcode == "slice-start":
        return 2 * _in_hbm(item.shapes[1:2])
    if item.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(shapes[1])
    if item.opcode == "copy-start":
        return _in_hbm(item.shapes[:2])
    if item.opcode != "fusion":
        return _in_hbm(item.shapes) + sum(map(_in_hbm, shapes))
    inner = computations[item.called("calls") or ""]
    read = sum(_read_of_parameter(inner, number, given) for number, given in enumerate(shapes))
    return read + _written(inner, item)


def _read_of_parameter(inner: Computation, number: int, given: tuple[Shape, ...]) -> int:
    """Bytes that a fusion reads of one of its operands: all, or what its slices take where nothing else uses it."""
    name = next(i.name for i in inner.instructions.values() if i.opcode == "parameter" and i.literal == str(number))
    read = 0
    for item in inner.instructions.values():
        if name not in item.operands or item.opcode in _HANDED_ON:
            continue
        if item.opcode in _UPDATES and item.operands[0] == name and name not in item.operands[1:]:
            continue
        if item.opcode not in _SLICES or item.operands[0] != name:
            return _in_hbm(given)
        read += sum(shape.size_bytes for shape in item.shapes)
    return min(read, _in_hbm(given))


def _written(inner: Computation, item: Instruction) -> int:
    """Bytes that a fusion writes: of an array that it updates in place the update, of one it hands on nothing."""
    root = inner.root
    results = [inner.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(results) != len(item.shapes):
        return _in_hbm(item.shapes)
    total = 0
    for result, shape in zip(results, item.shapes, strict=True):
        while result.opcode == "bitcast":
            result = inner.instructions[result.operands[0]]
        if result.opcode in _UPDATES:
            update = inner.instructions[result.operands[_UPDATES[result.opcode]]]
            total += min(sum(part.size_bytes for part in update.shapes), _in_hbm((shape,)))
        elif result.opcode not in ("parameter", *_HANDED_ON):
            total += _in_hbm((shape,))
    return total


def _in_hbm(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.size_bytes for shape in shapes if shape.is_in_hbm)


def _list(attributes: str, key: str) -> list[int]:
    found = re.search(rf"{key}=\{{([\d,]*)\}}", attributes)
    return [int(number) for number in found.group(1).split(",") if number] if found else []
