"""Times the import of a random Llama of 1.04 billion parameters onto 8 simulated devices, and its peak memory.

    python -m tests.bench.import_model

The folder is written first (random bfloat16 numbers, two shards). Each import is a process of its own; its peak is the
largest resident set the kernel saw (VmHWM), interpreter and libraries included.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table

from model.hf.family import hub_tensors
from model.hf.registry import read_model
from model.hf.shards import FolderWriter, TensorSpec, plan_shards
from tests.hub_models import CHATML

CONFIG = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 2048, "num_hidden_layers": 18,
    "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 6144, "tie_word_embeddings": False,
    "max_position_embeddings": 2048, "eos_token_id": 2,
}  # fmt: skip
DEVICES = 8
PROGRAM = """
import sys, time
from rich.console import Console
from launch.interchange import run_import
began = time.monotonic()
run_import(sys.argv[1], sys.argv[2], dtype=sys.argv[3], template=None, vocab_multiple=1, console=Console(quiet=True))
peak_kb = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(time.monotonic() - began, int(peak_kb) * 1024)
"""


def write_folder(folder: Path) -> int:
    """Writes the model and a tokenizer; returns the number of parameters."""
    from tests.hub_folders import TURNS, Folder, spell_bytes
    from tests.hub_folders import write_folder as write_tokenizer

    config = {"eos_token": "<|im_end|>", "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    pipeline = spell_bytes(special=(*TURNS, "<|pad|>"))
    write_tokenizer(folder, Folder(pipeline, config | {"chat_template": CHATML}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    family, cfg = read_model(CONFIG)
    specs = [TensorSpec(each.name, each.shape, np.dtype(ml_dtypes.bfloat16)) for each in hub_tensors(family, cfg)]
    rng = np.random.default_rng(0)
    with FolderWriter(folder, plan_shards(specs, 1_500_000_000)) as writer:
        for spec in specs:
            noise = rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(0.02)
            writer.write(spec.name, noise.astype(spec.dtype))
    return sum(math.prod(spec.shape) for spec in specs)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.import_model", description=__doc__)
    parser.add_argument("--folder", help="where to write the model and its imports, about 9 GB (default: temporary)")
    options = parser.parse_args(arguments)
    console = Console(width=120)
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        source = Path(scratch) / "model"
        source.mkdir()
        began = time.monotonic()
        count = write_folder(source)
        console.print(
            f"{count:,} parameters written in {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}"
        )
        table = Table(
            caption=f"{DEVICES} simulated devices, {os.cpu_count()} cores; ratio: peak over the parameters' bytes"
        )
        for column in ("target dtype", "parameters", "seconds", "peak memory", "ratio"):
            table.add_column(column, justify="right")
        for dtype, width in (("bfloat16", 2), ("float32", 4)):
            command = [sys.executable, "-c", PROGRAM, str(source), str(Path(scratch) / dtype), dtype]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"the import failed:\n{done.stderr}")
            seconds, peak = map(float, done.stdout.split())
            size = count * width
            table.add_row(dtype, f"{size / 1e9:.2f} GB", f"{seconds:.1f}", f"{peak / 1e9:.2f} GB", f"{peak / size:.2f}")
        console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
