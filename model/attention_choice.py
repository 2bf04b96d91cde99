"""Which kernel computes attention over packed rows: what each cannot do, and what `auto` means where.

A kernel that is wanted and cannot serve the model is an error, never another kernel: a run that silently takes the
slower one, or one that does not see the borders of packed examples, looks like any other run.
"""

import dataclasses
from collections.abc import Callable

import jax

from model.config import AttentionName, ComputeConfig, ModelConfig

FASTEST: dict[str, AttentionName] = {"tpu": "splash", "gpu": "cudnn"}
"""What `auto` means by platform; a CPU has two, by the length of its rows."""
CPU_BLOCKWISE_LENGTH = 384
"""Rows of a CPU from this length on are computed blockwise. Measured: docs/benchmarks.md."""
CPU_BLOCK = 128
"""Measured: docs/benchmarks.md."""
ACCELERATOR_BLOCK = 512
"""Reasoned and not measured: scores of a block, 1 MB in float32, fit in what is nearest to the arithmetic."""
SLOWER = "compute.attention=blockwise"


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Kernel:
    """The chosen kernel. Static: it may stand in trees of arrays."""

    name: AttentionName
    block: int
    """Most positions of queries, and of keys, in a block; of no meaning to `dense` and `cudnn`."""


def choose_attention(cfg: ModelConfig, compute: ComputeConfig, *, platform: str, row_length: int) -> Kernel:
    """The kernel for packed rows of this length on devices of this platform (`cpu`, `gpu`, `tpu`).

    Raises ValueError where the wanted one, or for `auto` the platform's fast one, cannot serve the model.
    """
    name = _fastest(platform, row_length) if compute.attention in ("auto", "any") else compute.attention
    reasons = _REASONS[name](cfg, compute, platform, row_length)
    if reasons and compute.attention == "any":
        name = "blockwise"
    elif reasons:
        wanted = f"compute.attention={compute.attention}"
        wanted += f" means {name} on {platform}, which" if compute.attention == "auto" else ""
        raise ValueError(f"{wanted} cannot serve this model here: {'; '.join(reasons)}; {SLOWER} allows the slower one")
    block = compute.attention_block or (CPU_BLOCK if platform == "cpu" else ACCELERATOR_BLOCK)
    return Kernel(name=name, block=block)


def platform_in_use() -> str:
    """The platform of the mesh in use, also of one whose devices are not attached."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def describe_attention(kernel: Kernel) -> str:
    """The kernel in a few words, for people."""
    return {
        "dense": "dense (T by T scores, masked by segment)",
        "blockwise": f"blockwise (XLA, blocks of {kernel.block} positions)",
        "splash": f"splash (Pallas, blocks of at most {kernel.block} positions)",
        "cudnn": "cudnn (flash attention, masked by segment)",
    }[kernel.name]


def _fastest(platform: str, row_length: int) -> AttentionName:
    return FASTEST.get(platform) or ("blockwise" if row_length >= CPU_BLOCKWISE_LENGTH else "dense")


def _not_on(platform: str, needed: str) -> list[str]:
    return [] if platform == needed else [f"it runs on {needed} only, and the devices are {platform}"]


def _always_serves(*_of_a_run: object) -> list[str]:
    return []


def _against_splash(cfg: ModelConfig, compute: ComputeConfig, platform: str, _row_length: int) -> list[str]:
    reasons = _not_on(platform, "tpu")
    if cfg.alibi:
        reasons.append("it has no ALiBi (model.alibi)")
    if compute.attention_block is not None and compute.attention_block % 128:
        reasons.append(f"its blocks are multiples of 128, compute.attention_block={compute.attention_block} is none")
    return reasons


def _against_cudnn(cfg: ModelConfig, compute: ComputeConfig, platform: str, row_length: int) -> list[str]:
    """What JAX documents of its cuDNN kernels, and of what they are given here."""
    reasons = _not_on(platform, "gpu")
    if compute.dtype != "bfloat16":
        reasons.append(f"it has no {compute.dtype} (compute.dtype=bfloat16 would do)")
    if cfg.attention_softcap:
        reasons.append(f"it has no soft-cap of scores (model.attention_softcap={cfg.attention_softcap:g})")
    if cfg.alibi:
        reasons.append("it has no ALiBi (model.alibi)")
    if cfg.head_dim % 8 or cfg.head_dim > 256:
        reasons.append(f"model.head_dim={cfg.head_dim} is no multiple of 8 up to 256 (128 before Hopper)")
    if row_length % 2:
        reasons.append(f"rows of {row_length} positions are odd")
    return reasons


_REASONS: dict[AttentionName, Callable[[ModelConfig, ComputeConfig, str, int], list[str]]] = {
    "dense": _always_serves,
    "blockwise": _always_serves,
    "splash": _against_splash,
    "cudnn": _against_cudnn,
}
