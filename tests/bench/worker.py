"""A contender in a process of its own, told what to do through a pipe."""

import functools
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from launch.config import Recipe
from launch.runtime import keep_freed_memory, set_up_process
from tests.bench.process import Process
from tests.bench.workload import Step
from train.mfu import Utilisation

DeviceKind = Literal["cpu", "gpu"]
WantedDevice = Literal["auto", "cpu", "gpu"]


class DeviceFacts(NamedTuple):
    """What there is to run on."""

    kind: DeviceKind
    name: str
    memory_bytes: int | None
    """Of a GPU."""
    attentions: tuple[str, ...]
    """What transformers has here for packed rows, without a package that is not installed."""
    versions: str


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table and what makes its step."""

    name: str
    side: str
    """`polytune` or `transformers`."""
    options: dict[str, Any] = field(default_factory=dict)
    is_packed: bool = True
    """Whether its forward pass runs over packed rows, or over padded examples."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What every contender may use, the same for both sides."""

    device: DeviceKind
    cores: int
    keep_memory: bool
    """glibc keeps freed memory, as polytune's own programs have it on a CPU."""
    is_shared: bool
    """Whether contenders are in memory together."""


class Outcome(NamedTuple):
    """What came of a contender."""

    contender: Contender
    steps: list[Step]
    peak_bytes: int = 0
    failure: str = ""
    """Why there are no steps."""
    utilisation: Utilisation | None = None
    """Of polytune: the formula that is everyone's."""


class Worker:
    """A contender's process. Commands are sent and answered one at a time, so only one process computes."""

    def __init__(self, contender: Contender, recipe: Recipe, start: Path, machine: Machine):
        self.contender = contender
        self._process = Process(functools.partial(make_contender, contender, recipe, start, machine))
        self.ask("warm_up")

    def ask(self, method: str, *arguments: Any) -> Any:
        """The contender's answer; RuntimeError with its name and traceback when it fails."""
        try:
            return self._process.ask(method, *arguments)
        except RuntimeError as error:
            self.stop()
            raise RuntimeError(f"{self.contender.name}: {error}") from None

    def step(self, index: int) -> Step:
        """Makes step `index`."""
        return self.ask("step", index)

    def finish(self, steps: list[Step]) -> Outcome:
        """The outcome of a contender that made its steps."""
        return Outcome(self.contender, steps, self.ask("read_peak"), utilisation=self.ask("utilisation"))

    def stop(self) -> None:
        """Ends the process."""
        self._process.stop()


def find_device(wanted: WantedDevice) -> DeviceFacts:
    """What torch sees, asked in another process: one that has seen a GPU holds some of its memory.

    Raises SystemExit for a GPU that is not there.
    """
    probe = Process(functools.partial(_make_device, wanted))
    try:
        facts: DeviceFacts = probe.ask("find_facts")
    finally:
        probe.stop()
    if wanted == "gpu" and facts.kind == "cpu":
        raise SystemExit(f"--device gpu: {facts.versions} sees no GPU; install a CUDA build of torch, or leave it out")
    return facts


def _make_device(wanted: WantedDevice) -> Any:
    from tests.bench.torch_device import TorchDevice

    return TorchDevice(wanted)


def make_contender(contender: Contender, recipe: Recipe, start: Path, machine: Machine) -> Any:
    """The contender, in the process that this is called in. Each side's framework alone touches the device."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: machine.cores])
    _set_up_jax(machine)
    if contender.side == "polytune":
        set_up_process(keep_memory=machine.keep_memory)
        from tests.bench.polytune_side import PolytuneContender

        return PolytuneContender(recipe, start, machine.device, **contender.options)
    if machine.keep_memory:
        keep_freed_memory()
    from tests.bench.transformers_side import TransformersContender

    return TransformersContender(recipe, start, machine.device, is_packed=contender.is_packed, **contender.options)


def _set_up_jax(machine: Machine) -> None:
    """Both are read when JAX first looks for devices."""
    if machine.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
    # By default JAX takes 75% of a GPU at once, torch what it needs, up to everything.
    elif machine.is_shared:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    elif not any(name in os.environ for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")):
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
