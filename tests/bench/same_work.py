"""What must hold for two sides to do the same work: checked in the recipe, then in the first batch's numbers."""

import json
import operator
from typing import Any

import msgspec

from launch.config import Recipe
from model import transformer
from model.config import ModelConfig
from model.parallel import UNSHARDED
from tests.bench.worker import DeviceFacts
from tests.bench.workload import Step

TOLERANCES = {"float32": (1e-4, 1e-3), "bfloat16": (1e-3, 1e-2)}
"""Of loss and gradient norm, relative. Float32: the order of additions. Bfloat16: the two round at other places, which
on a CPU made 6e-5 and 8e-4 of 8 layers of width 256."""
AS_IN_TORCH: dict[str, Any] = {
    "optim.name": "adamw", "optim.mu_dtype": "float32", "optim.weight_decay_params": None,
    "train.freeze": (), "train.ema_decay": None, "train.optimizer_memory": "device", "train.neftune_alpha": None,
    "train.dropout": 0.0, "train.spikes": None,
    "train.loss.z_loss_weight": 0.0, "train.loss.label_smoothing": 0.0,
    "train.router.load_balance_weight": 0.0, "train.router.z_loss_weight": 0.0,
}  # fmt: skip
"""Settings that the torch side knows one value of."""
BYTES_PER_PARAMETER = 16
"""Weight, gradient and two moments in float32, on either side; activations come on top."""


class NotTheSameWorkError(RuntimeError):
    """A contender's first batch has other numbers than polytune's."""


def check_recipe(recipe: Recipe, device: DeviceFacts) -> None:
    """Raises SystemExit for a recipe whose step the torch side does not have."""
    found = {key: operator.attrgetter(key)(recipe) for key in AS_IN_TORCH}
    wrong = [key for key, wanted in AS_IN_TORCH.items() if found[key] != wanted]
    if wrong:
        given = ", ".join(f"{key}={found[key]!r}" for key in wrong)
        overrides = " ".join(f"{key}={json.dumps(AS_IN_TORCH[key])}" for key in wrong)
        raise SystemExit(f"the torch side cannot do the same with {given}; override: {overrides}")
    if device.kind == "gpu" and recipe.compute.dtype != "bfloat16":
        raise SystemExit(
            f"compute.dtype={recipe.compute.dtype} on a GPU means TensorFloat-32 to JAX and float32 to torch, which is "
            "not the same work; override: compute.dtype=bfloat16"
        )


def check_memory(cfg: ModelConfig, device: DeviceFacts) -> None:
    """Raises SystemExit for a model whose weights, gradients and moments alone do not fit the GPU."""
    if device.memory_bytes is None:
        return
    most = device.memory_bytes // BYTES_PER_PARAMETER
    whole = _count(cfg)
    if whole <= most:
        return
    one = _count(msgspec.structs.replace(cfg, num_layers=1))
    layer = (whole - one) / max(1, cfg.num_layers - 1)
    layers = 1 + int((most - one) / layer) if most > one else 0
    advice = f"override: model.num_layers={layers} or fewer" if layers else "take a smaller model"
    raise SystemExit(
        f"{whole:,} parameters need {whole * BYTES_PER_PARAMETER / 2**30:.1f} GiB for float32 weights, gradients and "
        f"AdamW's moments alone; {device.name} has {device.memory_bytes / 2**30:.1f} GiB. The benchmark is of one GPU: "
        f"{advice}"
    )


def check_first(name: str, found: Step, wanted: Step, *, dtype: str) -> None:
    """Raises NotTheSameWorkError when a contender's first loss or gradient norm is not that of the first contender."""
    loss_tolerance, norm_tolerance = TOLERANCES[dtype]
    # Written so that a NaN is noticed too.
    same_loss = abs(found.loss / wanted.loss - 1) <= loss_tolerance
    if not (same_loss and abs(found.grad_norm / wanted.grad_norm - 1) <= norm_tolerance):
        raise NotTheSameWorkError(
            f"not the same work: {name} has loss {found.loss:.6f}, gradient norm {found.grad_norm:.6f}; polytune "
            f"{wanted.loss:.6f}, {wanted.grad_norm:.6f}; {dtype} may differ by {loss_tolerance:g} and "
            f"{norm_tolerance:g} of them"
        )


def _count(cfg: ModelConfig) -> int:
    return transformer.count_parameters(transformer.abstract(cfg, UNSHARDED))
