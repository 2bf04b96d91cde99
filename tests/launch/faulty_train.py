"""`polytune` with a fault in one process that trains: `python -m tests.launch.faulty_train FAULT launch local ...`.

FAULT is KIND:PROCESS:STEP.
"""

import os
import signal
import sys
import time

import launch.cli
import launch.local
import launch.train
from data.schema import DataError


def make_fault(kind: str, step: int):
    """The iterator of batches, with the fault before that step."""
    make_batches = launch.train.make_batches

    def make(*arguments, **options):
        batches = make_batches(*arguments, **options)
        for number, batch in enumerate(batches, 1):
            if number == step:
                FAULTS[kind]()
            yield batch

    return make


def _loader() -> None:
    raise DataError("shard abc is damaged: row 7 is cut short; prepare again")


def _bug() -> None:
    raise KeyError("a bug")


def _sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _sigkill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _freeze() -> None:
    time.sleep(3600)


FAULTS = {"loader": _loader, "bug": _bug, "sigterm": _sigterm, "sigkill": _sigkill, "freeze": _freeze}

if __name__ == "__main__":
    fault = sys.argv[1]
    kind, process, step = fault.split(":")
    launch.local.PROGRAM = ("tests.launch.faulty_train", fault)
    if os.environ.get("JAX_PROCESS_ID") == process:
        launch.train.make_batches = make_fault(kind, int(step))
    sys.exit(launch.cli.main(sys.argv[2:]))
