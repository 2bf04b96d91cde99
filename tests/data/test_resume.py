"""A run that is resumed at any batch, in a new process, on other hosts and loaders, sees what it would have seen."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from toy_dataset import make_dataset, store_dataset

from data.batch import Batch
from data.pipeline import make_batches
from data.plan import Plan, write_plan

ROOT = Path(__file__).resolve().parents[2]
BATCH_ROWS, BATCHES, ROW_LENGTH = 8, 30, 24

PROGRAM = """
import sys, hashlib
from pathlib import Path
from data.pipeline import make_batches

def main():
    start, workers, hosts = map(int, sys.argv[2:])
    for host in range(hosts):
        place = dict(host_index=host, host_count=hosts, workers=workers)
        batches = make_batches(Path(sys.argv[1]), start_row=start, batch_rows=8, **place)
        for index, batch in enumerate(batches):
            print(index, host, hashlib.sha256(b"".join(array.tobytes() for array in batch)).hexdigest())

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def plan_dir(tmp_path_factory):
    """240 rows of a few examples each; every token id says which example and place it is of."""
    folder = tmp_path_factory.mktemp("resume")
    draw = random.Random(5)
    sizes = [draw.randint(2, 12) for _ in range(400)]
    dataset = make_dataset(
        [
            ([1000 * n + k for k in range(size)], [3] * size, [0] + [1] * (size - 1), 1 + n % 2, 1 + n % 3)
            for n, size in enumerate(sizes)
        ]
    )
    rows = []
    while len(rows) < BATCH_ROWS * BATCHES:
        row = [draw.randrange(400)]
        while sum(sizes[e] - 1 for e in row) < ROW_LENGTH - 11:
            row.append(draw.randrange(400))
        rows.append(row)
    plan = Plan(
        row_offsets=np.cumsum([0, *map(len, rows)]),
        row_examples=np.concatenate([np.array(row, np.int32) for row in rows]),
        row_length=ROW_LENGTH,
        hash="h",
        summary={"rows": len(rows), "row_length": ROW_LENGTH, "batch_rows": BATCH_ROWS, "steps": BATCHES, "hash": "h"},
    )
    store_dataset(dataset, folder / "plan" / "dataset", folder / "store")
    write_plan(plan, folder / "plan")
    return folder / "plan"


@pytest.fixture(scope="module")
def whole(plan_dir):
    """The batches of a run that nothing interrupts."""
    return list(make_batches(plan_dir, start_row=0, batch_rows=BATCH_ROWS))


def serve(plan_dir, *, first, count, hosts):
    """Global batches `first` to `first + count` as that many hosts load them, their shares laid end to end."""
    shares = []
    for host in range(hosts):
        batches = make_batches(
            plan_dir, start_row=first * BATCH_ROWS, batch_rows=BATCH_ROWS, host_index=host, host_count=hosts
        )
        shares.append([batch for batch, _ in zip(batches, range(count), strict=False)])
    return [Batch(*map(np.concatenate, zip(*parts, strict=True))) for parts in zip(*shares, strict=True)]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        for name, left, right in zip(Batch._fields, one, other, strict=True):
            np.testing.assert_array_equal(left, right, err_msg=name)


@pytest.mark.parametrize("seed", range(20))
def test_a_run_that_moves_from_4_hosts_to_2_to_8_sees_every_batch_once(plan_dir, whole, seed):
    """MaxText and Levanter's chat training lose or repeat data here: their state counts something other than rows."""
    first, second = sorted(random.Random(seed).sample(range(1, BATCHES), 2))
    pieces = [
        *serve(plan_dir, first=0, count=first, hosts=4),
        *serve(plan_dir, first=first, count=second - first, hosts=2),
        *serve(plan_dir, first=second, count=BATCHES - second, hosts=8),
    ]
    assert_same(pieces, whole)


@pytest.mark.parametrize("workers, hosts", [(0, 2), (1, 1), (4, 1)])
def test_a_fresh_process_at_a_random_batch_goes_on_where_the_old_one_was(plan_dir, whole, workers, hosts, tmp_path):
    """Peers restore a loader that had run ahead, or replay and discard; here the one integer is enough."""
    import hashlib

    first = random.Random(workers * 10 + hosts).randrange(1, BATCHES - 3)
    program = tmp_path / "load.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(plan_dir), str(first * BATCH_ROWS), str(workers), str(hosts)]
    shown = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    found = {(int(i), int(h)): digest for i, h, digest in map(str.split, shown.stdout.splitlines())}
    share = BATCH_ROWS // hosts
    owed = {
        (index, host): hashlib.sha256(
            b"".join(array[host * share : (host + 1) * share].tobytes() for array in batch)
        ).hexdigest()
        for index, batch in enumerate(whole[first:])
        for host in range(hosts)
    }
    assert found == owed


def _environment():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
