"""Folders as transformers saves them, through `import` and `export`, and read by transformers again.

Every family once, with the dtypes and files of its folder taking turns, and llama with all of them.
"""

import functools
import itertools
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

pytest.importorskip("transformers")

import safetensors
import torch
from hub_folders import TURNS, Folder, spell_bytes, write_folder
from rich.console import Console
from torch import nn
from toy import mesh_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval.opening import open_model
from launch.answering import AnswerConfig
from launch.generate import answer_prompts
from launch.interchange import run_export, run_import
from model.checkpoint import find_checkpoint, read_meta
from model.hf.checkpoints import write_model
from model.parallel import AxisRules
from model.rope import depends_on_length
from tests.parity import torch_reference as reference
from tests.parity.configs import MODEL_TYPES, draw_config

TOLERANCE = 1e-4
"""Of a logit, relative to the largest if that is above one."""
SHARD = "4KB"
"""So small that every model has several."""
NEW = 16
PROMPTS = ("hello world", "he said: 12 + 3 = ?", "मैं")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
END = 266
"""<|im_end|>."""
VOCABULARY = 275


class Case(NamedTuple):
    """What a folder is like."""

    model_type: str
    dtype: str
    is_sharded: bool
    seed: int


LAYOUTS = list(itertools.product(("float32", "bfloat16", "mixed"), (False, True)))
CASES = [
    Case(model_type, *LAYOUTS[i % len(LAYOUTS)], seed=i)
    for i, model_type in enumerate(["llama"] * (len(LAYOUTS) - 1) + list(MODEL_TYPES))
]
CASES.append(Case("bloom", "mixed", True, seed=0))  # whose head is not tied, and has no prefix as the others have


class Trip(NamedTuple):
    """The folders a case goes through."""

    original: Path
    run: Path
    """What import made of it."""
    exported: Path
    written: Path
    """Exported from a checkpoint that does not remember the original."""


def config_of(case: Case) -> dict[str, Any]:
    config = draw_config(case.model_type, case.seed)
    key = "dtype" if "dtype" in config else "torch_dtype"
    return config | {
        "vocab_size": VOCABULARY,
        "eos_token_id": END,
        key: "float32" if case.dtype == "float32" else "bfloat16",
    }


def give_dtypes(model: nn.Module, dtype: str) -> nn.Module:
    """The model with its matrices rounded, and its vectors too unless they are to be mixed."""
    for parameter in model.parameters() if dtype != "float32" else ():
        if dtype == "bfloat16" or parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


@functools.cache
def trip_of(case: Case, scratch: Path) -> Trip:
    trip = Trip(*(scratch / "-".join(map(str, case)) / name for name in Trip._fields))
    trip.original.mkdir(parents=True)
    config = config_of(case)
    model = give_dtypes(reference.build_model(config, case.seed), case.dtype)
    reference.save_folder(model, trip.original, config=config, max_shard_size=SHARD if case.is_sharded else "5GB")
    tokens = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    write_folder(trip.original, Folder(spell_bytes(special=(*TURNS, "<|pad|>")), tokens | {"chat_template": TEMPLATE}))
    quiet = Console(quiet=True)
    run_import(str(trip.original), str(trip.run), dtype=None, template=None, vocab_multiple=8, console=quiet)
    run_export(str(trip.run), str(trip.exported), dtype=None, max_shard_size=SHARD, console=quiet)
    forgetful = trip.run.with_name("forgetful")
    forget_origin(trip.run, forgetful)
    run_export(str(forgetful), str(trip.written), dtype=None, max_shard_size="5GB", console=quiet)
    return trip


def forget_origin(run: Path, forgetful: Path) -> None:
    """Copies an imported checkpoint as if its model had been made here."""
    opened = open_model(run)
    with jax.set_mesh(mesh_of((1, 1))):
        params = opened.load(opened.cfg, AxisRules())
        write_model(forgetful, params, {**read_meta(find_checkpoint(run)), "hub": None})
    shutil.copytree(run / "tokenizer", forgetful / "tokenizer")


@pytest.fixture(scope="session")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("folders")


@pytest.fixture(
    params=CASES, ids=lambda case: f"{case.model_type}-{case.dtype}-{'files' if case.is_sharded else 'file'}"
)
def trip(request, scratch) -> Trip:
    return trip_of(request.param, scratch)


def tensors_of(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Name to dtype, shape and bytes of every tensor."""
    return {
        name: (tensor["dtype"], tensor["shape"], bytes(tensor["data"]))
        for file in folder.glob("*.safetensors")
        for name, tensor in safetensors.deserialize(file.read_bytes())
    }


def open_in_transformers(folder: Path) -> nn.Module:
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager",
        local_files_only=True, output_loading_info=True,
    )  # fmt: skip
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@functools.cache
def logits_of(folder: Path) -> np.ndarray:
    model = open_in_transformers(folder)
    return reference.reference_logits(model, np.random.default_rng(0).integers(0, VOCABULARY, (2, 24)))


def test_every_tensor_comes_back_bit_by_bit(trip):
    before, after = tensors_of(trip.original), tensors_of(trip.exported)
    assert set(after) == set(before)
    assert [name for name in before if after[name] != before[name]] == []
    assert len(list(trip.exported.glob("*.safetensors"))) > 1


def test_transformers_computes_the_same_from_an_exported_folder(trip):
    np.testing.assert_array_equal(logits_of(trip.exported), logits_of(trip.original))


def test_transformers_computes_the_same_where_we_wrote_the_config(trip):
    wanted = logits_of(trip.original)
    np.testing.assert_allclose(
        logits_of(trip.written), wanted, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    )


def test_greedy_answers_are_those_of_transformers(trip):
    """Unless the rotation changes with the length of a text, which in transformers it does while a text grows."""
    cfg = open_model(trip.exported).cfg
    if any(kind.rope is not None and depends_on_length(kind.rope) for kind in cfg.kinds):
        pytest.skip("the rotation depends on the length")
    ours = answer_prompts(str(trip.exported), PROMPTS, AnswerConfig(max_new_tokens=NEW, stop_ids=()), system=None)
    model, tokenizer = open_in_transformers(trip.exported), AutoTokenizer.from_pretrained(trip.exported)
    # Its cache for a window of one token keeps all of them.
    settings = {"do_sample": False, "max_new_tokens": NEW, "use_cache": all(kind.window != 1 for kind in cfg.kinds)}
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        turns = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        output = model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
        assert answer.text == tokenizer.decode(output, skip_special_tokens=True)
        assert answer.stopped == (END in output.tolist())
