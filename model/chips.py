"""What the makers say of their chips: the numbers of rooflines and of MFU, each with its source."""

from typing import NamedTuple

GB, TB, GIB, MIB = 10**9, 10**12, 2**30, 2**20

GPU_MEMORY_SHARE = 0.75
"""Of a GPU's memory a JAX process takes this much, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
Source: https://docs.jax.dev/en/latest/gpu_memory_allocation.html"""


class Chip(NamedTuple):
    """One accelerator. Bandwidths are for one direction; a chip's links can all send at once."""

    name: str
    bfloat16_flops: float
    """Peak FLOP/s of dense bfloat16 products."""
    float32_flops: float
    """The same for float32 operands at JAX's default precision: one bfloat16 pass on a TPU, TensorFloat-32 on a GPU."""
    memory_bytes: int
    """Main memory that a program may use: what the TPU compiler (libtpu 0.0.52) allows, or `GPU_MEMORY_SHARE`."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """Of one link of a TPU's torus; of all of a GPU's NVLinks together."""
    full_ring: int
    """A TPU's torus closes to a ring along dimensions that are a multiple of this; 0: no torus, all to all."""
    source: str

    def peak_flops(self, dtype: str) -> float:
        """FLOP/s of products of this compute dtype."""
        return self.bfloat16_flops if dtype == "bfloat16" else self.float32_flops


NODE_GPUS = 8
NODE_BYTES_PER_S = 50 * GB
"""Between nodes of eight GPUs: one 400 Gbit/s adapter for each. Source: NVIDIA's DGX H100/H200 user guide."""

# A link's bandwidth is the published one of a chip, both ways, over ports and ways: 400 GB/s / 4 / 2 for v5e.
CHIPS = {
    "v5e": Chip(
        "TPU v5e", 197e12, 197e12, int(15.75 * GIB), 819 * GB, 50 * GB, 16, "https://docs.cloud.google.com/tpu/docs/v5e"
    ),
    "v5p": Chip(
        "TPU v5p", 459e12, 459e12, int(95.73 * GIB), 2765 * GB, 100 * GB, 4,
        "https://docs.cloud.google.com/tpu/docs/v5p-training",
    ),
    "v6e": Chip(
        "TPU v6e", 918e12, 918e12, int(31.24 * GIB), 1640 * GB, 100 * GB, 16,
        "https://docs.cloud.google.com/tpu/docs/v6e",
    ),
    "a100": Chip(
        "NVIDIA A100 SXM 80GB", 312e12, 156e12, int(GPU_MEMORY_SHARE * 81920 * MIB), 2039 * GB, 300 * GB, 0,
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    "h100": Chip(
        "NVIDIA H100 SXM", 989e12, 494e12, int(GPU_MEMORY_SHARE * 81559 * MIB), 3350 * GB, 450 * GB, 0,
        "https://www.nvidia.com/en-us/data-center/h100/",
    ),
    "h200": Chip(
        "NVIDIA H200 SXM", 989e12, 494e12, int(GPU_MEMORY_SHARE * 143771 * MIB), 4800 * GB, 450 * GB, 0,
        "https://www.nvidia.com/en-us/data-center/h200/",
    ),
}  # fmt: skip
TPUS = ("v5e", "v5p", "v6e")
GPUS = ("a100", "h100", "h200")

KINDS = {
    "TPU v5 lite": "v5e", "TPU v5e": "v5e",
    "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e",
    "NVIDIA A100-SXM4-40GB": "a100", "NVIDIA A100-SXM4-80GB": "a100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}  # fmt: skip
"""What JAX calls them (`device_kind`). Relatives of another peak, such as those on PCIe cards, are not listed."""


def find_chip(device_kind: str) -> Chip | None:
    """The chip that JAX calls so; None for one whose maker's numbers are not here, as for every CPU."""
    name = KINDS.get(device_kind)
    return None if name is None else CHIPS[name]
