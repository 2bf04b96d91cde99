"""Machines that are not here: a topology's name, and the devices that its programs are compiled for."""

import contextlib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from launch.config import RecipeError
from model.chips import CHIPS, GPUS, NODE_BYTES_PER_S, NODE_GPUS, TPUS, Chip

FORMS = "v5e:16x16, v6e:8x8, v5p:8x8x8 (chips along each dimension of a slice), gpu:h200:8, or cpu:8"
# What libtpu otherwise asks a TPU machine's metadata server, at length where there is none; and leave to be loaded
# beside a program that holds this machine's own TPU.
_LIBTPU_SETTINGS = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5e-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


class Topology(NamedTuple):
    """What a plan is made for."""

    name: str
    platform: str
    """tpu, gpu or cpu."""
    chip: Chip | None
    """None: simulated devices of this machine, for which no roofline is drawn."""
    shape: tuple[int, ...]
    """Chips along each dimension."""

    @property
    def size(self) -> int:
        """Number of chips."""
        return math.prod(self.shape)

    @property
    def memory_bytes(self) -> int:
        """Of one chip, for a program. Simulated devices share the machine's memory in equal parts."""
        if self.chip is not None:
            return self.chip.memory_bytes
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // self.size

    @property
    def compiler(self) -> str:
        """The platform whose compiler the plan's numbers come from."""
        return "tpu" if self.platform == "tpu" else "cpu"


def parse_topology(name: str) -> Topology:
    """The topology of a name like those in `FORMS`. Raises RecipeError."""
    kind, _, rest = name.partition(":")
    if kind in TPUS and re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", rest):
        shape = tuple(map(int, rest.split("x")))
        wanted = 3 if kind == "v5p" else 2
        if len(shape) != wanted:
            raise RecipeError(f"topology {name!r}: a slice of {kind} has {wanted} dimensions; give one of {FORMS}")
        return Topology(name, "tpu", CHIPS[kind], shape)
    if kind == "gpu":
        model, _, count = rest.partition(":")
        if model not in GPUS:
            raise RecipeError(f"topology {name!r}: no GPU {model!r}; give gpu:{'|'.join(GPUS)}:COUNT")
        return Topology(name, "gpu", CHIPS[model], (_count(name, count),))
    if kind == "cpu":
        return Topology(name, "cpu", None, (_count(name, rest),))
    raise RecipeError(f"topology {name!r} is not known; give one of {FORMS}")


def make_devices(topology: Topology) -> Sequence[Any]:
    """The topology's devices, to compile for; JAX itself runs on the CPU. A program's first use of JAX.

    Raises RecipeError when libtpu is missing or does not know the slice, or when JAX has already started here with
    fewer devices than a simulated topology needs.
    """
    jax.config.update("jax_platforms", "cpu")
    if topology.platform == "tpu":
        return _tpu_devices(topology)
    with contextlib.suppress(RuntimeError):  # already running; enough of them may be there
        jax.config.update("jax_num_cpu_devices", topology.size)
    if len(jax.devices()) < topology.size:
        raise RecipeError(
            f"topology {topology.name} needs {topology.size} simulated devices, JAX has started with "
            f"{len(jax.devices())}; plan in a process of its own, without XLA_FLAGS that set the number of devices"
        )
    return jax.devices()[: topology.size]


def bandwidth(topology: Topology, devices: np.ndarray, axes: Sequence[int]) -> float:
    """Bytes a second that one chip can send along these axes of the mesh, to the neighbours its groups span.

    On a TPU each dimension of the torus that a group extends along has a link in both directions, or in one where the
    slice is too short to close the ring. GPUs reach all of their node at once, and others through their adapter.
    """
    assert topology.chip is not None, "simulated devices have no links"
    first = devices[tuple(slice(None) if axis in axes else 0 for axis in range(devices.ndim))].reshape(-1)
    if topology.platform == "gpu":
        nodes = {device.id // NODE_GPUS for device in first}
        return topology.chip.link_bytes_per_s if len(nodes) == 1 else NODE_BYTES_PER_S
    coordinates = np.array([device.coords for device in first])
    total = 0.0
    for dimension, length in enumerate(topology.shape):
        spanned = len(set(coordinates[:, dimension]))
        if spanned > 1:
            is_ring = spanned == length and length % topology.chip.full_ring == 0
            total += topology.chip.link_bytes_per_s * (2 if is_ring else 1)
    return total


def _tpu_devices(topology: Topology) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise RecipeError(
            f"topology {topology.name} needs the TPU compiler: pip install 'polytune[plan]' (the package libtpu)"
        )
    for name, value in _LIBTPU_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(topology.name, platform="tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise RecipeError(f"topology {topology.name}: libtpu knows no such slice ({str(error)[:200]})") from None


def _count(name: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise RecipeError(f"topology {name!r}: {text!r} is no number of devices; give one of {FORMS}")
    return int(text)
