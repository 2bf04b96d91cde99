"""Times greedy decoding against `generate` of Hugging Face transformers on the same weights, float32, CPU.

    python -m tests.bench.decode

Each side is a process of its own; they take turns, a whole batch of answers each. Both read one folder of random
weights, are given the same prompts, and must give the same first tokens, or the benchmark stops. Time to compile (ours)
and to load (both) is outside.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

SIDES = ("polytune", "transformers")
MODELS = {
    "1M (the demo's)": {"num_layers": 4, "dim": 128, "num_heads": 4, "num_kv_heads": 2, "head_dim": 32,
                        "mlp_dim": 384, "vocab_size": 4096},
    "40M": {"num_layers": 8, "dim": 512, "num_heads": 8, "num_kv_heads": 4, "head_dim": 64, "mlp_dim": 1408,
            "vocab_size": 32000},
    "135M (SmolLM's shape)": {"num_layers": 30, "dim": 576, "num_heads": 9, "num_kv_heads": 3, "head_dim": 64,
                              "mlp_dim": 1536, "vocab_size": 49152},
}  # fmt: skip
SAME_TOKENS = 16
"""The first tokens of an answer that have to be the same. Later a near tie may be decided by rounding."""


def write_model(folder: Path, sizes: dict[str, int]) -> None:
    """A Llama of these sizes, tied, with random weights in float32."""
    import json

    from model.config import ModelConfig
    from model.hf.family import hub_tensors
    from model.hf.registry import write_config
    from model.hf.shards import FolderWriter, TensorSpec, plan_shards

    family, values = write_config(ModelConfig(**sizes), "llama")
    (folder / "config.json").write_text(json.dumps(values | {"max_position_embeddings": 2048}))
    rng = np.random.default_rng(0)
    specs = [
        TensorSpec(each.name, each.shape, np.dtype(np.float32)) for each in hub_tensors(family, ModelConfig(**sizes))
    ]
    with FolderWriter(folder, plan_shards(specs, 10**10)) as writer:
        for spec in specs:
            noise = rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(0.05)
            writer.write(spec.name, noise + np.float32("norm" in spec.name))


def open_polytune(folder: Path, prompts_BT: np.ndarray, new: int) -> Callable[[], np.ndarray]:
    """A function that answers the prompts with polytune."""
    from eval.engine import Model
    from launch.answering import prepare_to_decode
    from launch.runtime import set_up_process

    set_up_process()
    import jax
    import jax.numpy as jnp

    from model.config import ComputeConfig
    from model.decode import generate
    from model.hf.hub import open_hub
    from model.parallel import AxisRules, MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        hub = open_hub(folder)
        params = prepare_to_decode(
            Model(hub.cfg, AxisRules(), hub.load(AxisRules(), dtype=None), ComputeConfig())
        ).params
        prompts, lengths = jnp.asarray(prompts_BT), jnp.full(len(prompts_BT), prompts_BT.shape[1])

    def answer() -> np.ndarray:
        with jax.set_mesh(mesh):
            tokens_BN, _ = generate(
                hub.cfg, AxisRules(), params, prompts, lengths, max_new_tokens=new, stop_ids=(),
                compute=ComputeConfig(),
            )  # fmt: skip
            return np.asarray(tokens_BN)

    return answer


def open_transformers(folder: Path, prompts_BT: np.ndarray, new: int) -> Callable[[], np.ndarray]:
    """A function that answers the prompts with transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    prompts = torch.from_numpy(prompts_BT.astype(np.int64))
    mask = torch.ones_like(prompts)

    def answer() -> np.ndarray:
        with torch.inference_mode():
            ids = model.generate(prompts, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=0)
        return ids[:, prompts.shape[1] :].numpy()

    return answer


def serve(pipe: Any, side: str, folder: Path, prompts_BT: np.ndarray, new: int) -> None:
    """A process that answers whenever it is told to, and says how long it took."""
    answer = (open_polytune if side == "polytune" else open_transformers)(folder, prompts_BT, new)
    answer()
    pipe.send("ready")
    while pipe.recv():
        began = time.perf_counter()
        tokens = answer()
        pipe.send((time.perf_counter() - began, tokens))


def measure(name: str, options: argparse.Namespace, console: Console) -> list[list[float]]:
    """Seconds of each side, run by run. Raises SystemExit when the sides do not say the same."""
    sizes = MODELS[name]
    rng = np.random.default_rng(1)
    prompts_BT = rng.integers(0, sizes["vocab_size"], (options.batch, options.prompt)).astype(np.int32)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), sizes)
        context = multiprocessing.get_context("spawn")
        pipes = []
        for side in SIDES:
            ours, theirs = context.Pipe()
            context.Process(
                target=serve, args=(theirs, side, Path(folder), prompts_BT, options.new), daemon=True
            ).start()
            pipes.append(ours)
            assert ours.recv() == "ready"
        seconds: list[list[float]] = [[] for _ in SIDES]
        for _ in range(options.runs):
            answers = []
            for each, pipe in zip(seconds, pipes, strict=True):
                pipe.send(True)
                taken, tokens = pipe.recv()
                each.append(taken)
                answers.append(tokens)
            if not np.array_equal(answers[0][:, :SAME_TOKENS], answers[1][:, :SAME_TOKENS]):
                raise SystemExit(f"{name}: the two sides answer differently; nothing to compare")
        for pipe in pipes:
            pipe.send(False)
    same = float(np.mean(answers[0] == answers[1]))
    console.print(f"{name}: {same:.1%} of all tokens the same")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.decode", description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", action="append", choices=tuple(MODELS), help="default: all")
    options = parser.parse_args(arguments)
    console = Console(width=120)
    table = Table(
        title=f"batch {options.batch}, prompts of {options.prompt}, {options.new} new tokens, float32, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        caption="ratio: transformers' seconds over polytune's, of runs in turn; median (lowest to highest)",
    )
    for column in ("model", "polytune tok/s", "transformers tok/s", "ratio"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in options.model or MODELS:
        ours, theirs = measure(name, options, console)
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        speeds = (f"{options.batch * options.new / statistics.median(each):,.0f}" for each in (ours, theirs))
        table.add_row(name, *speeds, f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
