"""Several processes of one run: which rows each of them loads, and what they tell each other.

Python values go through the key-value store of `jax.distributed`, before the first step; what belongs to a step goes
through the step itself, so that every process reads it at the same point of the run.
"""

import dataclasses
import datetime
import json
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the store has no public door; orbax goes through this one
from jaxtyping import Array, Float, Int, UInt

from data.batch import Batch
from train.digests import join_digests
from train.metrics import BatchFacts

Value = TypeVar("Value")

PREFIX = "polytune/"
"""Of all keys of ours."""
FOREVER = datetime.timedelta(days=30)
"""A process that will never answer is the business of `launch.together`, not of each wait."""


def store() -> Any:
    """The key-value store that the processes of this run share. Raises RuntimeError where there is only one process."""
    client = distributed.global_state.client
    if client is None:
        raise RuntimeError("this process has not joined others; launch.cluster.join does")
    return client


def is_first() -> bool:
    """Whether this is process 0: it prepares data, writes metrics and speaks to the user."""
    return jax.process_index() == 0


def tell_all(name: str, make: Callable[[], Value], *, on_wait: Callable[[], None] = lambda: None) -> Value:
    """What `make` returns in process 0, in every process: plain values, as JSON keeps them.

    The others wait for it, as long as it takes; `on_wait` is called once if that is more than two seconds. A name is
    told once in a run.
    """
    if jax.process_count() == 1:
        return make()
    key = f"{PREFIX}told/{name}"
    if is_first():
        value = make()
        store().key_value_set(key, json.dumps(value))
        return value
    try:
        return json.loads(store().blocking_key_value_get(key, 2_000))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
    on_wait()
    return json.loads(store().blocking_key_value_get(key, FOREVER // datetime.timedelta(milliseconds=1)))


def wait_for_all(name: str) -> None:
    """Returns once every process is here; a name is waited for once in a run."""
    if jax.process_count() > 1:
        store().wait_at_barrier(f"{PREFIX}{name}", FOREVER // datetime.timedelta(milliseconds=1))


def agree(name: str, problem: str | None) -> str | None:
    """The first problem that any process has, the same in each; None if none has one. Every process calls it alike,
    with a name that is used once in a run.
    """
    if jax.process_count() == 1:
        return problem
    key = f"{PREFIX}agree/{name}"
    if problem is not None:
        store().key_value_set(f"{key}/{jax.process_index():06d}", f"process {jax.process_index()}: {problem}")
    store().wait_at_barrier(f"{key}/all", FOREVER // datetime.timedelta(milliseconds=1))
    return min(store().key_value_dir_get(f"{key}/"), default=(key, None))[1]


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of each global batch a process loads: the `index`-th of `count` equal parts."""

    index: int
    count: int
    speaks: bool
    """False where another process loads the same part, for other devices of a tensor axis, and reports it."""


def share_of_batch(mesh: jax.sharding.Mesh, spec: jax.sharding.PartitionSpec, *, rows: int) -> Share:
    """This process's share of a batch of so many rows that is partitioned like this.

    Processes whose devices hold the same rows have the same share. Where a mesh gives a process rows that are not
    consecutive, as on the grid of a TPU pod, its share is still one run of the plan's rows: the batch then has the same
    rows in another order (`row_order`).

    Raises ValueError when the processes hold unlike numbers of rows, or overlapping ones.
    """
    return pick_share(_held_rows(mesh, spec, rows), jax.process_index(), rows=rows)


def row_order(mesh: jax.sharding.Mesh, spec: jax.sharding.PartitionSpec, *, rows: int) -> tuple[int, ...]:
    """Which row of a batch, as the plan has them, lies at each place of it on the mesh; () where all are in order."""
    return order_rows(_held_rows(mesh, spec, rows))


def _held_rows(mesh: jax.sharding.Mesh, spec: jax.sharding.PartitionSpec, rows: int) -> dict[int, frozenset[int]]:
    """The places in a batch that the devices of each process hold."""
    held: dict[int, set[int]] = {}
    for device, (part, *_) in jax.sharding.NamedSharding(mesh, spec).devices_indices_map((rows, 1)).items():
        held.setdefault(device.process_index, set()).update(range(*part.indices(rows)))
    return {process: frozenset(part) for process, part in held.items()}


def order_rows(held: dict[int, frozenset[int]]) -> tuple[int, ...]:
    """`row_order`, given which places of a batch the devices of each process hold.

    Places (0 2) and (1 3): the shares are rows (0 1) and (2 3), so that the places 0 to 3 have rows 0, 2, 1 and 3.
    """
    parts = sorted(set(held.values()), key=min)
    places = [place for part in parts for place in sorted(part)]
    order = tuple(np.argsort(places).tolist())
    return () if order == tuple(range(len(order))) else order


def pick_share(held: dict[int, frozenset[int]], process: int, *, rows: int) -> Share:
    """The share of a process, given which rows of the global batch the devices of each process hold.

    Two processes with rows (0 1) and (2 3): shares 0 and 1 of 2. Both with rows (0 1 2 3): both have share 0 of 1, and
    process 0 speaks for it.
    """
    parts = sorted(set(held.values()), key=min)
    overlap = sum(map(len, parts)) != len(set().union(*parts))
    if overlap or len({len(part) for part in parts}) > 1:
        sizes = ", ".join(f"process {index}: {len(part)}" for index, part in sorted(held.items()))
        raise ValueError(
            f"the mesh gives the processes overlapping or unlike parts of the {rows} rows of a batch ({sizes}); make "
            "mesh.data * mesh.fsdp * mesh.expert a multiple or a divisor of the number of processes"
        )
    first = min(index for index, part in held.items() if part == held[process])
    return Share(parts.index(held[process]), len(parts), first == process)


def put_batch(batch: Batch, spec: jax.sharding.PartitionSpec, *, shares: int = 1) -> Batch:
    """The global batch on the mesh in use, of which `batch` is this process's share, one of so many."""
    sharding = jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)

    def put(x_BT: np.ndarray) -> jax.Array:
        rows, length = x_BT.shape
        return jax.make_array_from_process_local_data(sharding, x_BT, (rows * shares, length))

    return jax.tree.map(put, batch)


class Notes(NamedTuple):
    """What the processes tell each other with a step. Rows by device (D) before it; the sum, and all rows, after it."""

    counts: Int[Array, "D C"] | Int[Array, "C"]
    """How many processes say what `Told` has, then tokens by language and by source id. In the row of a process's first
    device."""
    flops: Float[Array, "D"] | Float[Array, ""]
    """What the model needs for the share's tokens."""
    marks: UInt[Array, "D 4"]
    """One row a share: its index + 1, and its three digests. 0: the row of a device that has nothing to say."""


class Told(NamedTuple):
    """What any process of a run has said with a step."""

    stops: bool = False
    saves: bool = False


def write_notes(facts: BatchFacts, share: Share, told: Told) -> Notes:
    """This process's notes on the mesh in use."""
    mesh = jax.sharding.get_mesh()
    local = len(mesh.local_devices)
    tokens = np.concatenate([facts.tokens_R, facts.tokens_S])
    counts_DC = np.zeros((local, len(told) + len(tokens)), np.int32)
    flops_D = np.zeros(local, np.float32)
    marks_DX = np.zeros((local, 4), np.uint32)
    counts_DC[0, : len(told)] = told
    if share.speaks:
        counts_DC[0, len(told) :] = tokens
        flops_D[0] = facts.flops
        marks_DX[0] = (share.index + 1, *facts.crcs)
    sharding = jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))

    def place(local_DX: np.ndarray) -> Array:
        shape = (mesh.devices.size, *local_DX.shape[1:])
        return jax.make_array_from_process_local_data(sharding, local_DX, shape)

    return Notes(place(counts_DC), place(flops_D), place(marks_DX))


def spread_notes(notes: Notes) -> Notes:
    """The notes of all processes, the same in each; part of the compiled step."""
    return Notes(jnp.sum(notes.counts, axis=0), jnp.sum(notes.flops), jax.sharding.reshard(notes.marks, jax.P()))


def read_notes(notes: Notes, facts: BatchFacts, share: Share) -> tuple[BatchFacts, Told]:
    """The facts of the global batch of which `facts` knows a share, and what the processes have said."""
    counts_C, flops, marks_DX = jax.device_get(notes)
    said = len(Told._fields)
    told = Told(*map(bool, counts_C[:said]))
    tokens_R, tokens_S = np.split(counts_C[said:], [len(facts.tokens_R)])
    marks = sorted(tuple(map(int, row)) for row in marks_DX if row[0])
    crcs = [(tokens, targets, segments) for _, tokens, targets, segments in marks]
    assert [index for index, *_ in marks] == list(range(1, share.count + 1)), marks
    whole = facts._replace(
        rows=facts.rows * share.count,
        tokens=int(tokens_R.sum()),
        positions=facts.positions * share.count,
        tokens_R=tokens_R,
        tokens_S=tokens_S,
        flops=float(flops),
        digest=join_digests(crcs, share_bytes=4 * facts.positions),
    )
    return whole, told
