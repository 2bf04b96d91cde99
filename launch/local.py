"""`polytune launch local`: a real job of several processes on this machine, on simulated CPU devices."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from rich.console import Console

from launch.cluster import VARIABLES
from launch.config import RecipeError

PROGRAM = ("launch.cli",)
"""What each process runs, a module and its first arguments."""
GRACE_S = 20.0
"""How long the other processes may take to say why they end, once one has failed; then they are killed."""
POLL_S = 0.05
KEEPER_GONE = (
    "process {aborted}: aborted by JAX, because process 0 is gone ({how}): what all of them talk through goes with it. "
    "Nothing is known to be wrong with them; look for what ended process 0"
)
DIE_WITH_PARENT = (
    sys.executable, "-S", "-c",
    "import ctypes, os, signal, sys\n"
    "prctl = getattr(ctypes.CDLL(None), 'prctl', None)\n"
    "if prctl: prctl(1, signal.SIGKILL)\n"  # PR_SET_PDEATHSIG of Linux's prctl.h; outlasts exec
    "os.execv(sys.argv[1], sys.argv[1:])",
)  # fmt: skip
"""Before a command: runs it, with SIGKILL on its way should the launcher itself be killed. Not done in a `preexec_fn`,
which forks, while JAX's threads hold who knows what."""


def run_local(
    recipe: str, overrides: Sequence[str], *, processes: int, devices_per_process: int, console: Console
) -> int:
    """Trains a recipe in so many processes; returns 0 when all end well, else the code of the first that did not.

    Their output is shown line by line behind `[index]`; SIGTERM and SIGINT are passed on to each of them. Ended by a
    signal, a process has the code that a shell gives it, 128 and the signal's number. Raises RecipeError for numbers
    below 1.
    """
    for name, value in (("--processes", processes), ("--devices-per-process", devices_per_process)):
        if value < 1:
            raise RecipeError(f"{name} is {value}; give at least 1")
    command = [sys.executable, "-u", "-m", *PROGRAM, "train", recipe, *overrides]
    with hold_port() as port:
        environments = [
            make_environment(os.environ, index, processes=processes, devices=devices_per_process, port=port)
            for index in range(processes)
        ]
        return run_processes([(command, environment) for environment in environments], console=console)


def make_environment(
    environment: Mapping[str, str], index: int, *, processes: int, devices: int, port: int
) -> dict[str, str]:
    """The environment of one process: its place among the others, CPU devices, unbuffered output."""
    address = f"127.0.0.1:{port}"
    flags = re.sub(r"--xla_force_host_platform_device_count=\S*", "", environment.get("XLA_FLAGS", "")).strip()
    return {
        **environment,
        **dict(zip(VARIABLES, (address, str(processes), str(index)), strict=True)),
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": flags,
    }


@contextlib.contextmanager
def hold_port() -> Iterator[int]:
    """A port of this machine that no other program is given while inside, and that process 0 can listen on.

    The socket is bound and never listens; both it and JAX's service share the port by SO_REUSEPORT.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


def run_processes(
    commands: Sequence[tuple[Sequence[str], Mapping[str, str]]], *, console: Console, grace_s: float = GRACE_S
) -> int:
    """Runs commands with their environments side by side to their end; returns the first code that is not 0.

    Once one has failed, the others have `grace_s` to end too; what is left is killed, with all that it started.
    """
    children: list[subprocess.Popen[str]] = []
    readers: list[threading.Thread] = []
    lock = threading.Lock()
    try:
        with _passing_signals(children):
            for index, (command, environment) in enumerate(commands):
                child = subprocess.Popen(
                    [*DIE_WITH_PARENT, *command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace", bufsize=1,
                    start_new_session=True,
                )  # fmt: skip
                children.append(child)
                assert child.stdout is not None
                reader = threading.Thread(target=_show_lines, args=(child.stdout, index, console, lock), daemon=True)
                reader.start()
                readers.append(reader)
            return _wait(children, console, grace_s)
    finally:
        for child in children:
            _kill_group(child)
        for reader in readers:
            reader.join(timeout=2)


def _wait(children: Sequence[subprocess.Popen[str]], console: Console, grace_s: float) -> int:
    first: int | None = None
    until = float("inf")
    running, codes = dict(enumerate(children)), dict[int, int]()
    while running and time.monotonic() < until:
        for index, child in list(running.items()):
            if (code := child.poll()) is None:
                continue
            del running[index]
            codes[index] = code
            if code != 0 and first is None:
                first, until = code, time.monotonic() + grace_s
                console.print(f"process {index} was the first to end: {_name_code(code)}", highlight=False)
        time.sleep(POLL_S)
    aborted = sorted(index for index, code in codes.items() if code == -signal.SIGABRT)
    if aborted and codes.get(0, 0) != 0:
        shown = ", ".join(map(str, aborted))
        console.print(KEEPER_GONE.format(aborted=shown, how=_name_code(codes[0])), highlight=False, soft_wrap=True)
    if running:
        left = ", ".join(map(str, sorted(running)))
        console.print(f"killing what has not ended {grace_s:.0f} s later: process {left}", highlight=False)
    return 0 if first is None else first if first > 0 else 128 - first


def _name_code(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _show_lines(stream: IO[str], index: int, console: Console, lock: threading.Lock) -> None:
    with stream:
        for line in stream:
            with lock:
                console.print(f"[{index}] {line.rstrip()}", markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _passing_signals(children: Sequence[subprocess.Popen[str]]) -> Iterator[None]:
    """Passes SIGTERM and SIGINT on to every child: in sessions of their own, they get none from the terminal."""

    def pass_on(number: int, _frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill_group(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
