"""Proof that a golden folder tests what it should: each switch and tensor moves the logits, and it reads back."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.parity import torch_reference as reference
from tests.parity.variant import Variant, patched

SMALLEST_MOVE = 2e-3
"""Twenty times the tolerance of the float32 logits: what is done wrong must be seen."""
LARGEST_ROUNDING = 1.5e-5
"""Of the float32 logits against float64: a model that amplifies rounding would leave little of the tolerance."""
WITHOUT_POSITIONS = ("cohere2", "smollm3")
"""In a layer without positions a bias of the keys adds the same to every score of a query, and softmax drops it."""


def check_variant(model: nn.Module, variant: Variant, tokens_BT: np.ndarray, seed: int) -> dict[str, float]:
    """By how much the largest logit change is, per switch turned off, for the weakest tensor, and for order.

    Raises LookupError, naming it, for a move under SMALLEST_MOVE, and for a model that amplifies rounding.
    """
    logits = reference.reference_logits(model, tokens_BT)
    rounding = rounding_error(model, tokens_BT, logits)
    if rounding > LARGEST_ROUNDING:
        raise LookupError(f"{variant.name}: float32 is {rounding:.2g} off float64")
    switches = dict(variant.switches)
    if not model.config.tie_word_embeddings:
        switches["own head"] = {"tie_word_embeddings": True}
    moved = {switch: switched(model, variant, patch, tokens_BT, seed) for switch, patch in switches.items()}
    changes = {what: float(np.abs(other - logits).max()) for what, other in moved.items()}
    tensors = {f"tensor {name}": change for name, change in tensor_changes(model, tokens_BT, logits).items()}
    weakest = min(tensors, key=lambda name: tensors[name])
    changes[weakest] = tensors[weakest]
    changes["order of tokens"] = order_change(model, tokens_BT, logits)
    for what, change in changes.items():
        if not change > SMALLEST_MOVE:
            print(f"    {variant.name}, seed {seed}: {what} moves the logits by {change:.2g} only")
            raise LookupError(f"{variant.name}: {what} moves the logits by {change:.2g} only")
    return changes


def rounding_error(model: nn.Module, tokens_BT: np.ndarray, logits: np.ndarray) -> float:
    with torch.no_grad():
        exact = reference.forward(copy.deepcopy(model).double(), torch.from_numpy(tokens_BT).long())
    return float(np.abs(exact.numpy() - logits).max())


def switched(model: nn.Module, variant: Variant, patch: dict, tokens_BT: np.ndarray, seed: int) -> np.ndarray:
    """Logits with the switch off and the same tensors, where both models have them."""
    other = reference.build_model(patched(variant.config, patch), seed)
    kept, wanted = dict(model.named_parameters()), dict(other.named_parameters())
    shared = {name: value for name, value in kept.items() if name in wanted and wanted[name].shape == value.shape}
    other.load_state_dict(shared, strict=False)
    return reference.reference_logits(other, tokens_BT)


def tensor_changes(model: nn.Module, tokens_BT: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Largest logit change when each tensor is tilted along its last axis, one at a time; experts count singly."""
    changes = {}
    for name, parameter in model.named_parameters():
        if name.endswith("k_proj.bias") and model.config.model_type in WITHOUT_POSITIONS:
            continue
        fused = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        for number, part in enumerate(parameter.data if fused else [parameter.data]):
            before = part.clone()
            part.mul_(torch.linspace(0.7, 1.3, part.shape[-1]))
            change = np.abs(reference.reference_logits(model, tokens_BT) - logits).max()
            part.copy_(before)
            changes[f"{name}[{number}]" if fused else name] = float(change)
    return changes


def order_change(model: nn.Module, tokens_BT: np.ndarray, logits: np.ndarray) -> float:
    """Largest change of the last logits when the two tokens two and three before them change places."""
    swapped = tokens_BT.copy()
    swapped[:, [-3, -4]] = tokens_BT[:, [-4, -3]]
    return float(np.abs(reference.reference_logits(model, swapped) - logits)[:, -1].max())


def check_folder(folder: Path, values: dict[str, np.ndarray]) -> None:
    """Raises AssertionError unless from_pretrained gives the stored logits, in float32 and in bfloat16."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        output_loading_info=True,
    )  # fmt: skip
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    error = np.abs(reference.reference_logits(model.eval(), values["tokens"]) - values["logits"]).max()
    assert error <= 1e-6, f"{folder.stem} reads back {error:.2g} off"
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager", experts_implementation="eager"
    )
    rounded = torch.from_numpy(reference.reference_logits(model.eval(), values["tokens"]))
    stored = torch.from_numpy(values["logits_bfloat16"]).view(torch.bfloat16).float()
    error = (rounded - stored).abs().max().item()
    assert error == 0.0, f"{folder.stem} reads back {error:.2g} off in bfloat16"
