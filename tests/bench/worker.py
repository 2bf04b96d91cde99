"""A contender in a process of its own, told what to do through a pipe."""

import multiprocessing
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.config import Recipe
from launch.runtime import keep_freed_memory, set_up_process


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A row of the table and what makes its step."""

    name: str
    side: str
    options: dict[str, Any]
    positions: str
    """What its forward pass runs over: `packed` rows or `padded` examples."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What every contender may use, the same for both sides."""

    cores: int
    keep_memory: bool
    """glibc keeps freed memory, as polytune's own programs have it."""


class Worker:
    """A contender's process. Commands are sent and answered one at a time, so only one process computes."""

    def __init__(self, contender: Contender, recipe: Recipe, run_dir: Path, steps: int, machine: Machine):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, contender, recipe, run_dir, steps, machine)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self.contender = contender
        self.description = self.ask("describe")

    def ask(self, method: str, *arguments: Any) -> Any:
        """The contender's answer; RuntimeError with its traceback when it fails."""
        self._pipe.send((method, arguments))
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            failed, answer = True, "its process died"
        if failed:
            raise RuntimeError(f"{self.contender.name}: {answer}")
        return answer

    def time_step(self, index: int) -> tuple[float, float, float]:
        """Loss and gradient norm of batch `index`, and the seconds its step took."""
        (loss, norm), seconds = self.ask("step", index)
        return loss, norm, seconds

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()


def serve(pipe, contender: Contender, recipe: Recipe, run_dir: Path, steps: int, machine: Machine) -> None:
    """A worker's main: builds the contender and answers commands until the pipe closes."""
    made = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            if made is None:
                made = _make(contender, recipe, run_dir, steps, machine)
            began = time.perf_counter()
            answer = getattr(made, method)(*arguments)
            seconds = time.perf_counter() - began
            pipe.send((False, (answer, seconds) if method == "step" else answer))
        except Exception:
            pipe.send((True, traceback.format_exc()))


def _make(contender: Contender, recipe: Recipe, run_dir: Path, steps: int, machine: Machine) -> Any:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: machine.cores])
    # Imported here: each side loads its own framework only, and none is loaded before the allocator is set.
    if contender.side == "polytune":
        if machine.keep_memory:
            set_up_process()
        from tests.bench.polytune_side import PolytuneContender

        return PolytuneContender(recipe, run_dir, steps, **contender.options)
    if machine.keep_memory:
        keep_freed_memory()
    from tests.bench.transformers_side import TransformersContender

    return TransformersContender(recipe, run_dir, steps, **contender.options)
