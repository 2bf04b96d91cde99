"""TRL's side of the benchmark of preparing: JSON Lines to packed rows, as its SFTTrainer does it."""

import os
import time
from pathlib import Path
from typing import NamedTuple


class Prepared(NamedTuple):
    """What a side made of the rows, and how long it took it."""

    seconds: float
    examples: int
    tokens: int
    trained: int
    """Tokens with a loss."""
    rows: int
    fullness: float
    """Share of positions that hold a token."""
    version: str


def prepare_with_trl(rows: Path, tokenizer: Path, folder: Path, *, row_length: int, processes: int) -> Prepared:
    """Loads, tokenises and packs with `SFTTrainer`; its model is tiny and made before the clock starts."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_CACHE": str(folder / "cache")}
    import datasets
    import trl
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    datasets.disable_progress_bars()
    reader = AutoTokenizer.from_pretrained(tokenizer)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(reader), **shape))
    arguments = trl.SFTConfig(
        output_dir=str(folder / "out"), packing=True, max_length=row_length, assistant_only_loss=True,
        dataset_num_proc=processes if processes > 1 else None, report_to="none", use_cpu=True, bf16=False,
    )  # fmt: skip
    began = time.perf_counter()
    loaded = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder / "cache"))
    trainer = trl.SFTTrainer(model=model, args=arguments, train_dataset=loaded, processing_class=reader)
    seconds = time.perf_counter() - began
    packed = trainer.train_dataset
    tokens = sum(len(ids) for ids in packed["input_ids"])
    trained = sum(sum(label != -100 for label in labels) for labels in packed["labels"])
    count = len(packed)
    return Prepared(seconds, len(loaded), tokens, trained, count, tokens / (count * row_length), trl.__version__)
