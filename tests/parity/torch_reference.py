"""Reference values from transformers on torch: eager attention, float32, nothing from generation configs."""

import copy
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

LOGIT_SPREAD = 2.5
ROUTER_SPREAD = 3.0


class Gradients(NamedTuple):
    """Sum of weighted losses, and its gradient by tensor name of the hub's checkpoint format."""

    loss: float
    by_name: dict[str, np.ndarray]


class Continuation(NamedTuple):
    """Greedy tokens, and the smallest distance from the best logit to the second along the way."""

    tokens: np.ndarray
    smallest_gap: float


class RouterLosses(NamedTuple):
    """Over the positions where the mask is 1, all sparse layers together."""

    load_balance: float
    """transformers' load_balancing_loss_func: experts * sum_e (assignments of e / rows) * mean probability of e."""
    z: float
    """Mean of logsumexp(router logits) ** 2."""


def build_model(config: dict[str, Any], seed: int, *, randomised: bool = True) -> nn.Module:
    """The family's causal language model, float32, eval mode, eager attention and experts, every tensor random."""
    config = copy.deepcopy(config)
    hub_config = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    model = AutoModelForCausalLM.from_config(
        hub_config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    model = model.float().eval().requires_grad_(True)
    if randomised:
        randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> None:
    """Redraws every parameter, the same on any machine, so that each one moves the logits and caps and ties bite."""
    rng = np.random.Generator(np.random.PCG64(seed))
    head = model.get_output_embeddings().weight
    for name, parameter in sorted(model.named_parameters()):
        drawn = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
        values = torch.from_numpy(np.asarray(drawn))
        parameter.copy_(offset(name, model) + scale(name, parameter, parameter is head) * values)
    tokens = torch.from_numpy(rng.integers(0, head.shape[0], (2, 16)))
    # A power of two, so that the last bits of this machine's arithmetic do not get into the weights.
    head *= 2.0 ** round(math.log2(LOGIT_SPREAD / uncapped_logits(model, tokens).std().item()))


def offset(name: str, model: nn.Module) -> float:
    """Where a parameter is centred: norms around one, or around zero where the model adds the one itself."""
    if ("norm" not in name and "ln_f" not in name) or name.endswith("bias"):
        return 0.0
    return 0.0 if model.config.model_type.startswith("gemma") else 1.0


def scale(name: str, parameter: torch.Tensor, is_head: bool) -> float:
    """Standard deviation of the draw."""
    if "act_fn" in name:
        return 0.7
    if name.endswith("bias") or "norm" in name or "ln_f" in name:
        return 0.3
    if name.endswith("gate.weight"):
        return ROUTER_SPREAD / math.sqrt(parameter.shape[-1])
    if is_head or "embed" in name:
        return 0.6
    return 1.3 / math.sqrt(parameter.shape[-1])


def uncapped_logits(model: nn.Module, tokens_BT: torch.Tensor) -> torch.Tensor:
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap is not None:
        model.config.final_logit_softcapping = None
    logits_BTV = forward(model, tokens_BT)
    if cap is not None:
        model.config.final_logit_softcapping = cap
    return logits_BTV


def forward(model: nn.Module, tokens_BT: torch.Tensor, **more: Any) -> torch.Tensor:
    """Logits [B, T, V] of one forward pass without a cache, as a fresh model gives them."""
    forget_lengths(model)
    return model(input_ids=tokens_BT, use_cache=False, **more).logits


def forget_lengths(model: nn.Module) -> None:
    """Puts the frequencies back that dynamic scaling keeps from the longest sequence a model has seen."""
    for module in model.modules():
        if hasattr(module, "max_seq_len_cached") and hasattr(module, "original_inv_freq"):
            module.max_seq_len_cached = module.original_max_seq_len
            module.inv_freq = module.original_inv_freq.clone()


@torch.no_grad()
def reference_logits(model: nn.Module, tokens_BT: np.ndarray, positions_BT: np.ndarray | None = None) -> np.ndarray:
    """Logits [B, T, V], float32. Positions count from 0 unless given; BLOOM takes none."""
    more = {} if positions_BT is None else {"position_ids": torch.from_numpy(np.asarray(positions_BT, np.int64))}
    return forward(model, torch.from_numpy(np.asarray(tokens_BT, np.int64)), **more).float().numpy()


def bfloat16_copy(model: nn.Module) -> nn.Module:
    """The model as from_pretrained(dtype=bfloat16) loads it: weights rounded, rotary frequencies still float32."""
    rounded = copy.deepcopy(model)
    kept = {name: buffer.clone() for name, buffer in rounded.named_buffers() if "inv_freq" in name}
    rounded = rounded.to(torch.bfloat16)
    for name, buffer in kept.items():
        owner, _, leaf = name.rpartition(".")
        setattr(rounded.get_submodule(owner), leaf, buffer)
    return rounded


def reference_logits_bfloat16(model: nn.Module, tokens_BT: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] computed in bfloat16, given as float32."""
    return reference_logits(bfloat16_copy(model), tokens_BT)


def reference_loss_gradients(model: nn.Module, tokens_BT: np.ndarray, weights_BT: np.ndarray) -> Gradients:
    """Of sum_t weights[:, t] * -log p(tokens[:, t + 1]): the last column of weights counts for nothing.

    A row of the embedding that is the pad token's gets its gradient like any other (torch would leave it at zero).
    """
    tokens = torch.from_numpy(np.asarray(tokens_BT, np.int64))
    weights = torch.from_numpy(np.asarray(weights_BT, np.float32))
    embedding = model.get_input_embeddings()
    padding, embedding.padding_idx = embedding.padding_idx, None
    model.zero_grad()
    logits_BTV = forward(model, tokens)[:, :-1].float()
    losses = nn.functional.cross_entropy(logits_BTV.transpose(1, 2), tokens[:, 1:], reduction="none")
    loss = (losses * weights[:, :-1]).sum()
    loss.backward()
    embedding.padding_idx = padding
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients = {name: np.asarray(value.numpy()) for name, value in found.items() if value is not None}
    model.zero_grad()
    return Gradients(loss=float(loss.item()), by_name=as_on_hub(gradients, model.config.model_type))


def as_on_hub(tensors: dict[str, np.ndarray], model_type: str) -> dict[str, np.ndarray]:
    """The same tensors, with the experts that transformers fuses in memory split as checkpoints hold them."""
    split: dict[str, np.ndarray] = {}
    gate, up, down = ("w1", "w3", "w2") if model_type == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    for name, value in tensors.items():
        if model_type == "mixtral":
            name = name.replace(".mlp.", ".block_sparse_moe.")
        stem, _, leaf = name.rpartition(".")
        if not stem.endswith(".experts"):
            split[name] = value
            continue
        for expert, matrix in enumerate(value):
            if leaf == "down_proj":
                split[f"{stem}.{expert}.{down}.weight"] = matrix
            else:
                split[f"{stem}.{expert}.{gate}.weight"], split[f"{stem}.{expert}.{up}.weight"] = np.split(matrix, 2)
    return split


@torch.no_grad()
def greedy_continuation(model: nn.Module, prompt_T: np.ndarray, steps: int = 32) -> Continuation:
    """`steps` tokens after the prompt, each the largest logit of a whole forward pass over all before it."""
    tokens, smallest = torch.from_numpy(np.asarray(prompt_T, np.int64))[None], math.inf
    for _ in range(steps):
        best = forward(model, tokens)[0, -1].float().topk(2)
        smallest = min(smallest, (best.values[0] - best.values[1]).item())
        tokens = torch.cat([tokens, best.indices[None, :1]], dim=1)
    return Continuation(tokens=tokens[0, len(prompt_T) :].numpy(), smallest_gap=smallest)


@torch.no_grad()
def router_logits(model: nn.Module, tokens_BT: np.ndarray) -> np.ndarray | None:
    """[sparse layers, B, T, experts], float32; None for a model without experts."""
    if not hasattr(model.config, "num_experts_per_tok"):
        return None
    forget_lengths(model)
    tokens = torch.from_numpy(np.asarray(tokens_BT, np.int64))
    layers = model.model(input_ids=tokens, use_cache=False, output_router_logits=True).router_logits
    return torch.stack([layer.reshape(*tokens.shape, -1) for layer in layers]).float().numpy()


def draw_tokens(model: nn.Module, rng: np.random.Generator, rows: int, length: int, margin: float) -> np.ndarray:
    """[rows, length] random ids; with experts, each redrawn until its routing is clear of a tie by `margin`.

    Raises LookupError when no token of many drawn is routed clearly at some position.
    """
    vocabulary = model.config.vocab_size
    if not hasattr(model.config, "num_experts_per_tok"):
        return rng.integers(0, vocabulary, (rows, length))
    tokens = np.zeros((rows, 0), np.int64)
    while tokens.shape[1] < length:
        for _ in range(50):
            trial = np.concatenate([tokens, rng.integers(0, vocabulary, (rows, 1))], axis=1)
            if routing_margin(model, trial)[:, -1].min() > margin:
                break
        else:
            raise LookupError("no token here is routed clearly")
        tokens = trial
    return tokens


def routing_margin(model: nn.Module, tokens_BT: np.ndarray) -> np.ndarray:
    """[B, T]: by how much the last expert chosen leads the first one not chosen, the least of all layers."""
    logits = router_logits(model, tokens_BT)
    if logits is None or model.config.num_experts_per_tok == logits.shape[-1]:
        return np.full(tokens_BT.shape, np.inf)
    top, ordered = model.config.num_experts_per_tok, np.sort(logits, axis=-1)[..., ::-1]
    return (ordered[..., top - 1] - ordered[..., top]).min(axis=0)


def reference_router_losses(model: nn.Module, tokens_BT: np.ndarray, mask_BT: np.ndarray) -> RouterLosses:
    """Losses of one batch; the mask says which positions count and hides none of them from attention."""
    module = __import__(type(model).__module__, fromlist=["load_balancing_loss_func"])
    logits = router_logits(model, tokens_BT)
    assert logits is not None, "a model without experts has no router"
    rows = tuple(torch.from_numpy(layer.reshape(-1, layer.shape[-1])) for layer in logits)
    experts = rows[0].shape[-1]
    mask = torch.from_numpy(np.asarray(mask_BT, np.int64))
    balance = module.load_balancing_loss_func(rows, experts, model.config.num_experts_per_tok, mask)
    squares = torch.stack([layer.logsumexp(-1) ** 2 for layer in rows]) * mask.reshape(1, -1)
    return RouterLosses(load_balance=float(balance), z=float(squares.sum() / (mask.sum() * len(rows))))


def save_folder(
    model: nn.Module, directory: Path, *, config: dict[str, Any] | None = None, max_shard_size: str = "5GB"
) -> None:
    """Writes what save_pretrained writes; a config given takes the place of the expanded one, as hub folders vary."""
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    if config is not None:
        (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
