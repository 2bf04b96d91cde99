"""Regenerates tests/golden/families: `python -m tests.parity.make_golden [--only NAME ...] [--out DIRECTORY]`.

Needs torch and transformers. Each folder holds config.json as a hub folder has it, model.safetensors, and golden.npz:

    tokens            [2, 24]   int32
    logits            [2, 24, V] float32
    logits_bfloat16   [2, 24, V] uint16: the bits of the logits that transformers computes in bfloat16
    prompt            [P]       int32
    continuation      [32]      int32, greedy, each token from a whole float32 forward pass over all before it
    router_logits     [sparse layers, 2, 24, experts] float32    } families with experts
    router_mask       [2, 24]   int32, which positions count     }
    load_balance_loss, z_loss   [] float32, over the mask        }
    crossing_prompt, crossing_continuation: as above, starting on the short side of LongRoPE and ending on the long one

Running it twice gives the same bytes. It fails, writing nothing for that folder, when a switch, a tensor or the order
of the tokens does not change the logits, or when transformers reads the folder back differently.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from torch import nn

from tests.parity import torch_reference as reference
from tests.parity.configs import VARIANTS, Variant
from tests.parity.golden_checks import check_folder, check_variant

FAMILIES = Path(__file__).parents[1] / "golden" / "families"
SMALLEST_GAP = 0.01
"""Between the best and second logit of a greedy step: a hundred times the tolerance of the float32 logits."""
ROUTER_MARGIN = 0.2
"""Of router logits over `tokens`, so that bfloat16 picks the same experts."""
CONTINUED_ROUTER_MARGIN = 0.005
DIFFERENT_TOKENS = 4
"""A continuation that repeats one token would prove little."""


class Prompted(NamedTuple):
    """A prompt whose greedy continuation no rounding can turn."""

    prompt: np.ndarray
    continuation: np.ndarray


def draw_prompt(model: nn.Module, rng: np.random.Generator, length: int) -> Prompted:
    """Raises LookupError when a hundred prompts all lead to a near tie or to one repeated token."""
    for _ in range(100):
        prompt = reference.draw_tokens(model, rng, 1, length, CONTINUED_ROUTER_MARGIN)[0]
        tokens, gap = reference.greedy_continuation(model, prompt)
        whole = np.concatenate([prompt, tokens])[None]
        clear = gap > SMALLEST_GAP and reference.routing_margin(model, whole).min() > CONTINUED_ROUTER_MARGIN
        if clear and len(set(tokens.tolist())) >= DIFFERENT_TOKENS:
            return Prompted(prompt, tokens)
    raise LookupError("every continuation came near a tie")


def same_routing_in_bfloat16(model: nn.Module, tokens_BT: np.ndarray) -> bool:
    exact = reference.router_logits(model, tokens_BT)
    if exact is None:
        return True
    rounded = reference.router_logits(reference.bfloat16_copy(model), tokens_BT)
    top = model.config.num_experts_per_tok
    chosen, rounded_chosen = (np.sort(np.argsort(-logits, axis=-1)[..., :top]) for logits in (exact, rounded))
    return np.array_equal(chosen, rounded_chosen)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def golden_values(model: nn.Module, variant: Variant, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The arrays of golden.npz. Raises LookupError when this model has no clear ones."""
    tokens = reference.draw_tokens(model, rng, *variant.batch_rows, ROUTER_MARGIN)
    if not same_routing_in_bfloat16(model, tokens):
        raise LookupError("bfloat16 picks other experts")
    prompted = draw_prompt(model, rng, variant.prompt_length)
    values = {
        "tokens": tokens.astype(np.int32),
        "logits": reference.reference_logits(model, tokens),
        "logits_bfloat16": bfloat16_bits(reference.reference_logits_bfloat16(model, tokens)),
        "prompt": prompted.prompt.astype(np.int32),
        "continuation": prompted.continuation.astype(np.int32),
    }
    if variant.crossing_length:
        crossing = draw_prompt(model, rng, variant.crossing_length)
        values["crossing_prompt"] = crossing.prompt.astype(np.int32)
        values["crossing_continuation"] = crossing.continuation.astype(np.int32)
    logits = reference.router_logits(model, tokens)
    if logits is not None:
        mask = np.ones_like(values["tokens"])
        mask[1, 2 * mask.shape[1] // 3 :] = 0
        losses = reference.reference_router_losses(model, tokens, mask)
        values |= {"router_logits": logits, "router_mask": mask}
        values["load_balance_loss"] = np.float32(losses.load_balance)
        values["z_loss"] = np.float32(losses.z)
    return values


def hub_tensors(model: nn.Module, variant: Variant) -> dict[str, np.ndarray]:
    """What save_pretrained writes, and then what old checkpoints have besides."""
    with tempfile.TemporaryDirectory() as scratch:
        reference.save_folder(model, Path(scratch))
        tensors = load_file(Path(scratch) / "model.safetensors")
    tensors = {name.removeprefix(variant.prefix_dropped): value for name, value in tensors.items()}
    if variant.rotary_buffers:
        frequencies = model.model.rotary_emb.inv_freq.numpy()
        for layer in range(model.config.num_hidden_layers):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies
    return tensors


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], values: dict) -> None:
    """Replaces the folder, whole or not at all."""
    scratch = folder.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    (scratch / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: tensors[name].copy() for name in sorted(tensors)}, scratch / "model.safetensors", {"format": "pt"})
    np.savez(scratch / "golden.npz", **values)
    check_folder(scratch, values)
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def make(variant: Variant, folder: Path) -> dict[str, float]:
    """Writes one folder and returns by how much each switch, tensor and the order of tokens move the logits."""
    for seed in range(30):
        model = reference.build_model(variant.config, seed)
        try:
            values = golden_values(model, variant, np.random.Generator(np.random.PCG64(1000 + seed)))
            moved = check_variant(model, variant, values["tokens"], seed)
        except LookupError:
            continue
        write_folder(folder, variant.config, hub_tensors(model, variant), values)
        return {"seed": seed} | moved
    raise LookupError(f"{variant.name}: no seed gives clear values whose every switch matters")


def main() -> None:
    parser = argparse.ArgumentParser(description="Regenerate the golden folders of the model families.")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=FAMILIES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name in arguments.only:
        moved = make(VARIANTS[name], arguments.out / name)
        size = sum(path.stat().st_size for path in (arguments.out / name).iterdir())
        print(f"{name}: {size:,} bytes, seed {moved.pop('seed')}")
        for what, change in moved.items():
            print(f"    {what}: {change:.2g}")
    total = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file())
    print(f"{total:,} bytes in all")


if __name__ == "__main__":
    main()
