"""Which processes make up a run: found in the environment or given, and joined before JAX starts."""

import dataclasses
import socket
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax._src.clusters import ClusterEnv  # JAX's own detection, which has no public door

from launch.config import RecipeError
from launch.runtime import is_cpu_only

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Address of process 0 as host:port, how many processes there are, and which of them this one is."""
JOIN_S = 300
"""How long processes wait for each other at the start; JAX's own default."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run, and which of them this one is."""

    how: str
    """Where this was found: a name from the table of `detect_cluster`."""
    coordinator: str
    """host:port at which process 0 listens for the others."""
    processes: int
    index: int
    local_device_ids: tuple[int, ...] | None = None
    """Accelerators of this host that are this process's; None: all of them."""


class Flags(NamedTuple):
    """What the command line says of the cluster; None: nothing."""

    cluster: str = "auto"
    """`auto`: look; `none`: a process alone, whatever the environment says."""
    coordinator: str | None = None
    processes: int | None = None
    process_index: int | None = None


def detect_cluster(flags: Flags, environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that this process belongs to, or None for a process alone. The first of these that says anything:

        flags        --coordinator HOST:PORT --processes N --process-index I
        environment  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
        JAX's own    gcetpu and gketpu (TPU metadata), slurm (under srun), ompi (under mpirun), k8s (indexed jobs)

    One process is no cluster. Raises RecipeError for some of three values without the others, and ones that contradict.
    """
    if flags.cluster == "none":
        return None
    given = {
        "flags": (flags.coordinator, flags.processes, flags.process_index),
        "environment": tuple(environment.get(name) for name in VARIABLES),
    }
    names = {"flags": ("--coordinator", "--processes", "--process-index"), "environment": VARIABLES}
    for how, values in given.items():
        if any(value is not None for value in values):
            return _check(how, dict(zip(names[how], values, strict=True)))
    return _ask_jax(environment)


def join(cluster: Cluster) -> None:
    """Joins the cluster's other processes, waiting for them; to be called before any JAX computation.

    Raises RecipeError when they do not all come.
    """
    # Each step tells every process whether any was told to stop (train.hosts); the service would take SIGTERM away.
    jax.config.update("jax_enable_preemption_service", False)
    if is_cpu_only():
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            cluster.coordinator, cluster.processes, cluster.index,
            local_device_ids=None if cluster.local_device_ids is None else list(cluster.local_device_ids),
            cluster_detection_method="deactivate", initialization_timeout=JOIN_S,
        )  # fmt: skip
    except jax.errors.JaxRuntimeError as error:
        raise RecipeError(
            f"process {cluster.index} of {cluster.processes} ({socket.gethostname()}) could not join the others at "
            f"{cluster.coordinator} ({cluster.how}) within {JOIN_S} s: {str(error).splitlines()[0]}. Start all of "
            "them, let them reach that port, or give --cluster none for a process alone"
        ) from None


def describe(cluster: Cluster) -> str:
    """For the user, e.g. `4 processes (slurm): this is 0, on node1; the others join it at node1:61234`."""
    return (
        f"{cluster.processes} processes ({cluster.how}): this is {cluster.index}, on {socket.gethostname()}; "
        f"the others join at {cluster.coordinator}"
    )


def _check(how: str, values: Mapping[str, str | int | None]) -> Cluster | None:
    missing = [name for name, value in values.items() if value is None]
    (_, coordinator), (processes_name, count), (index_name, number) = values.items()
    if missing:
        raise RecipeError(f"{' and '.join(missing)} missing: several processes need all of {', '.join(values)}")
    processes, index = _whole(processes_name, count), _whole(index_name, number)
    host, _, port = str(coordinator).rpartition(":")
    if not host or not port.isdigit():
        raise RecipeError(f"{next(iter(values))} is {coordinator!r}; write HOST:PORT, e.g. 10.0.0.1:8476")
    if not 0 <= index < processes:
        raise RecipeError(
            f"{index_name} is {index}, {processes_name} {processes}: processes count from 0 to {max(processes - 1, 0)}"
        )
    return Cluster(how, str(coordinator), processes, index) if processes > 1 else None


def _whole(name: str, value: str | int | None) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise RecipeError(f"{name} is {value!r}; give a whole number") from None


def _ask_jax(environment: Mapping[str, str]) -> Cluster | None:
    for found in ClusterEnv._cluster_types:
        if found.opt_in_only_method or not found.is_env_present():
            continue
        processes = found.get_process_count()
        if processes == 1:
            return None
        address = found.get_coordinator_address(
            timeout_secs=JOIN_S, override_coordinator_port=environment.get("JAX_COORDINATOR_PORT")
        )
        devices = SHARES_A_HOST.get(found.name, lambda _: None)(environment)
        return Cluster(found.name, address, processes, found.get_process_id(), devices)
    return None


def _slurm_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """One accelerator a process where a node has several of them; left to itself, JAX takes one in any case."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "1"))
    return None if tasks.partition("(")[0] == "1" else (int(environment["SLURM_LOCALID"]),)


def _ompi_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    if environment.get("OMPI_COMM_WORLD_LOCAL_SIZE", "1") == "1":
        return None
    return (int(environment["OMPI_COMM_WORLD_LOCAL_RANK"]),)


SHARES_A_HOST: dict[str, Callable[[Mapping[str, str]], tuple[int, ...] | None]] = {
    "slurm": _slurm_devices,
    "ompi": _ompi_devices,
}
"""Which accelerators a process takes, where several may run on one host."""
