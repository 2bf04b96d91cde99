"""Which processes belong together is found alike whoever starts them, and half an answer is an error."""

import pytest

from launch.cluster import Cluster, Flags, describe, detect_cluster
from launch.config import RecipeError

JAX = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}
SLURM = {
    "SLURM_JOB_ID": "4096000", "SLURM_STEP_NODELIST": "node[007-010],other2", "SLURM_NTASKS": "4", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}  # fmt: skip
MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
}  # fmt: skip
ALONE = {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}


@pytest.fixture
def detect(monkeypatch):
    """Detection in an environment of these variables alone."""

    def detect(variables, flags=Flags()):  # noqa: B008 (immutable)
        for name in [*JAX, *SLURM, *MPI]:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return detect_cluster(flags, variables)

    return detect


@pytest.mark.parametrize(
    ("variables", "cluster"),
    [
        ({}, None),
        (JAX, Cluster("environment", "10.0.0.1:8476", 4, 2)),
        (JAX | SLURM, Cluster("environment", "10.0.0.1:8476", 4, 2)),
        (JAX | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (SLURM, Cluster("slurm", "node007:61440", 4, 3, (1,))),
        (SLURM | ALONE, None),
        (MPI, Cluster("ompi", "10.96.0.1:62624", 2, 1)),
        (MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, Cluster("ompi", "10.96.0.1:62624", 2, 1, (0,))),
    ],
)
def test_the_cluster_of_an_environment(detect, variables, cluster):
    assert detect(variables) == cluster


def test_one_slurm_task_on_a_node_has_all_of_its_accelerators(detect):
    """JAX itself would take the first alone and leave seven of eight idle, without a word."""
    assert detect(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_LOCALID": "0"}).local_device_ids is None


def test_flags_win_and_none_means_alone(detect):
    flags = Flags(coordinator="h:1", processes=2, process_index=1)
    assert detect(JAX | SLURM, flags) == Cluster("flags", "h:1", 2, 1)
    assert detect(JAX | SLURM, Flags(cluster="none")) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID missing: several processes need all of JAX_COORDINATOR_ADDRESS, "),
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID is 4, JAX_NUM_PROCESSES 4: processes count from 0 to 3"),
        ({"JAX_PROCESS_ID": "two"}, "JAX_PROCESS_ID is 'two'; give a whole number"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "JAX_COORDINATOR_ADDRESS is '10.0.0.1'; write HOST:PORT"),
    ],
)
def test_half_an_answer_is_an_error(detect, change, message):
    variables = {name: value for name, value in (JAX | change).items() if value is not None}
    with pytest.raises(RecipeError, match=message):
        detect(variables)


def test_flags_must_come_together(detect):
    with pytest.raises(RecipeError, match="--coordinator and --process-index missing"):
        detect({}, Flags(processes=2))


def test_a_cluster_is_told_of_in_a_line():
    line = describe(Cluster("slurm", "node007:61440", 4, 0))
    assert line.startswith("4 processes (slurm): this is 0, on ")
    assert line.endswith("the others join at node007:61440")
