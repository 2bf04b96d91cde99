"""A compiled program's text, read: instructions, the shapes they make, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once, and a model's layers and microbatches are loops: whatever is
counted here is counted as often as it runs. The text is the optimised one of the program for one device.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "f16": 2, "bf16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "f8e4m3": 1,
    "f8e4m3b11fnuz": 1, "f8e5m2fnuz": 1, "f8e4m3fnuz": 1, "f8e3m4": 1, "f8e8m0fnu": 1, "token": 0, "opaque": 0,
}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_FAST_MEMORY = re.compile(r"S\([1-9]\d*\)")


class Shape(NamedTuple):
    """One array."""

    dtype: str
    dims: tuple[int, ...]
    is_in_hbm: bool
    """False: the compiler keeps it in a memory nearer to the arithmetic."""

    @property
    def size_bytes(self) -> int:
        """Without the padding of its layout."""
        return math.ceil(math.prod(self.dims) * BYTES[self.dtype])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    """What it makes: several for a tuple."""
    operands: tuple[str, ...]
    literal: str
    """What stands between the brackets: of a constant, its value."""
    attributes: str
    is_root: bool

    def called(self, key: str) -> str | None:
        """The computation named by `key=%name`."""
        found = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Computation:
    """A function of the program."""

    name: str
    instructions: Mapping[str, Instruction]
    """By name, in order."""

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(item for item in self.instructions.values() if item.is_root)

    def operand_shapes(self, instruction: Instruction) -> list[Shape]:
        """The arrays an instruction is given."""
        return [shape for name in instruction.operands for shape in self.instructions[name].shapes]


class Visit(NamedTuple):
    """An instruction where it runs."""

    instruction: Instruction
    computation: Computation
    times: int
    """How often in one step."""
    owner: str
    """The computation that is run as such: for an instruction inside a fusion, the one that holds the fusion."""
    is_fused: bool
    """Its operands and results are those of a fusion's inside, which no memory holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """The text of a compiled program, by computation."""

    computations: Mapping[str, Computation]
    entry: str
    assumed_trips: tuple[tuple[str, int], ...] = ()
    """How often the body of a loop runs whose length depends on data, by the name of its scope in our code."""

    def visits(self) -> Iterator[Visit]:
        """Yields every instruction that runs, with how often, from the entry down."""
        yield from self._visit(self.entry, times=1, owner=self.entry, is_fused=False)

    def unknown_loops(self) -> list[str]:
        """Names of loops whose length the text does not tell and nothing is assumed of; their bodies count once."""
        return sorted(
            {
                visit.instruction.name
                for visit in self.visits()
                if visit.instruction.opcode == "while" and self.trip_count(visit.instruction) is None
            }
        )

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a loop's body runs; None where neither the text nor an assumption tells."""
        if known := re.search(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)', loop.attributes):
            return int(known.group(1))
        condition = self.computations[loop.called("condition") or ""]
        bound = _bound(self, condition, condition.root)
        assumed = (trips for scope, trips in self.assumed_trips if f'/{scope}/while"' in loop.attributes)
        return next(assumed, None) if bound is None else bound

    def _visit(self, name: str, *, times: int, owner: str, is_fused: bool) -> Iterator[Visit]:
        computation = self.computations[name]
        for item in computation.instructions.values():
            yield Visit(item, computation, times, owner, is_fused)
            for called, repeats, fused in self._calls(item):
                yield from self._visit(
                    called, times=times * repeats, owner=owner if fused else called, is_fused=is_fused or fused
                )

    def _calls(self, item: Instruction) -> list[tuple[str, int, bool]]:
        """What an instruction runs: the computation, how often, whether as the inside of a fusion."""
        match item.opcode:
            case "while":
                return [(item.called("body") or "", 1 if (trips := self.trip_count(item)) is None else trips, False)]
            case "fusion":
                return [(item.called("calls") or "", 1, True)]
            case "call":
                return [(item.called("to_apply") or "", 1, False)]
            case "async-start":
                return [(item.called("calls") or "", 1, False)]
            case "conditional":
                branches = re.search(r"branch_computations=\{([^}]*)\}", item.attributes)
                names = branches.group(1).split(",") if branches else _either(item)
                return [(name.strip().lstrip("%"), 1, False) for name in names]
        return []


def parse_program(text: str) -> Program:
    """The program of a compiled executable's `as_text()`."""
    computations: dict[str, Computation] = {}
    entry, name, lines = "", "", {}
    for line in _whole_lines(text):
        if name and line.startswith("}"):
            computations[name] = Computation(name=name, instructions=lines)
            name = ""
        elif name:
            if (item := _parse_instruction(line)) is not None:
                lines[item.name] = item
        elif (head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)) and not line.startswith("HloModule"):
            name, lines = head.group(2), {}
            entry = name if head.group(1) else entry
    assert entry, "the text of a compiled program has an entry"
    return Program(computations=computations, entry=entry)


def _whole_lines(text: str) -> Iterator[str]:
    """Yields the lines, and puts back to its line what a TPU's compiler breaks off: a kernel's metadata, in JSON."""
    whole = ""
    for line in text.splitlines():
        if line.startswith(('"', "}}")):
            whole += line
            continue
        yield whole
        whole = line
    yield whole


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """The arrays of a type: `(f32[2,3]{1,0}, s32[])` has two."""
    return tuple(
        Shape(
            dtype=found.group(1),
            dims=tuple(int(size.lstrip("<=")) for size in found.group(2).split(",") if size),
            is_in_hbm=not _FAST_MEMORY.search(found.group(3) or ""),
        )
        for found in _ARRAY.finditer(text)
        if found.group(1) in BYTES
    )


def _parse_instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opening = rest.index("(", end)
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    return Instruction(
        name=head.group(2),
        opcode=rest[end:opening].strip(),
        shapes=parse_shapes(rest[:end]),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        literal=inside,
        attributes=rest[closing + 1 :],
        is_root=bool(head.group(1)),
    )


def _closing(text: str, opening: int) -> int:
    """Where the bracket that opens there is closed."""
    depth = 0
    for at in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if not depth:
            return at
    raise ValueError(f"a line of the compiled program has an open bracket: {text[:80]!r}")


def _bound(program: Program, computation: Computation, root: Instruction) -> int | None:
    """n of a condition `i < n`, for a counter that starts at 0 and grows by one, as those of `jax.lax.scan` do."""
    if root.opcode == "fusion":
        inner = program.computations[root.called("calls") or ""]
        numbers = [_constant(computation, name) for name in root.operands]
        compare = inner.root
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        limit = inner.instructions[compare.operands[1]]
        return numbers[int(limit.literal)] if limit.opcode == "parameter" else _constant(inner, limit.name)
    if root.opcode != "compare" or "direction=LT" not in root.attributes:
        return None
    return _constant(computation, root.operands[1])


def _constant(computation: Computation, name: str) -> int | None:
    item = computation.instructions[name]
    return int(item.literal) if item.opcode == "constant" and item.literal.isdigit() else None


def _either(item: Instruction) -> list[str]:
    return [name for key in ("true_computation", "false_computation") if (name := item.called(key))]
