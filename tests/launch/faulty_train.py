"""`polytune` with a fault in one process that trains: `python -m tests.launch.faulty_train FAULT launch local ...`.

FAULT is KIND:PROCESS:STEP. For tests that need not wait as long as users would, processes count as silent after
`SILENT_S`.
"""

import functools
import os
import resource
import signal
import sys
import time

import jax
import numpy as np

import launch.cli
import launch.local
import launch.runtime
import launch.train
import train.saver
from data.schema import DataError
from launch.together import fail_together
from train.metrics import MetricsWriter

SILENT_S = 10.0


def make_fault(kind: str, step: int):
    """The iterator of batches, with the fault before that step."""
    make_batches = launch.train.make_batches

    def make(*arguments, **options):
        first = options["start_row"] // options["batch_rows"] + 1
        for number, batch in enumerate(make_batches(*arguments, **options), first):
            yield FAULTS[kind](batch) or batch if number == step else batch

    return make


def _loader(_batch) -> None:
    raise DataError("shard abc is damaged: row 7 is cut short; prepare again")


def _bug(_batch) -> None:
    raise KeyError("a bug")


def _sigterm(_batch) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _sigkill(_batch) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _sigstop(_batch) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _freeze(_batch) -> None:
    time.sleep(3600)


def _nan(batch):
    """The first trained position of its first row that has any weighs NaN."""
    weight_BT = batch.loss_weight_BT.copy()
    weight_BT[tuple(np.argwhere(weight_BT > 0)[0])] = np.nan
    return batch._replace(loss_weight_BT=weight_BT)


def _metrics(_batch) -> None:
    def write(*_arguments, **_options):
        raise OSError("metrics.jsonl: No space left on device")

    MetricsWriter.write_step = write


def _no_save(_batch) -> None:
    """From now on this process cannot write into the folder of checkpoints, until it has failed twice."""
    probe, failures = train.saver._probe, iter((True, True))
    train.saver._probe = lambda folder: "the bucket is out of reach" if next(failures, False) else probe(folder)


def _no_room(_batch) -> None:
    """No file of this process may grow past 12 kB from now on: probes pass, arrays do not; until a save has failed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard))
    fail = train.saver.Saver._fail

    def fail_and_make_room(saver, step, error):
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        fail(saver, step, error)

    train.saver.Saver._fail = fail_and_make_room


FAULTS = {
    "loader": _loader, "bug": _bug, "sigterm": _sigterm, "sigkill": _sigkill, "sigstop": _sigstop, "freeze": _freeze,
    "nan": _nan, "metrics": _metrics, "no_save": _no_save, "no_room": _no_room,
}  # fmt: skip


def interleave(make_mesh):
    """Meshes whose neighbours in the first axis are devices of unlike processes, as on the grid of a TPU pod."""

    def make(config):
        devices, here = jax.devices(), len(jax.local_devices())
        return make_mesh(config, [device for first in range(here) for device in devices[first::here]])

    return make


if __name__ == "__main__":
    fault = sys.argv[1]
    kind, process, step = fault.split(":")
    launch.local.PROGRAM = ("tests.launch.faulty_train", fault)
    if kind == "interleave":  # in every process; no fault
        launch.runtime.make_mesh = interleave(launch.runtime.make_mesh)
        kind = "none"
    launch.train.fail_together = functools.partial(fail_together, silent_s=SILENT_S)
    if kind != "none" and os.environ.get("JAX_PROCESS_ID", "0") == process:
        launch.train.make_batches = make_fault(kind, int(step))
    sys.exit(launch.cli.main(sys.argv[2:]))
