"""`polytune import` and `polytune export`: Hugging Face folders in, Hugging Face folders out."""

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import msgspec
import numpy as np
from rich.console import Console

from data.chat import ChatTemplate, load_chat, save_chat
from data.schema import DataError
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_export import write_hub_tokenizer
from eval.opening import OpenModel, check_vocabulary, describe_hub, open_model
from launch.environment import library_versions
from launch.model_card import write_model_card
from launch.runtime import set_up_process
from model.checkpoint import Weights
from model.config import ModelConfig
from model.hf.checkpoints import write_model
from model.hf.family import Family, constant_tensors, hub_tensors, prefixed
from model.hf.hub import GENERATION_FILE, HubFacts, open_hub, stop_ids_of
from model.hf.registry import family_of, write_config
from model.hf.shards import FolderWriter, TensorSpec, building, compare_folder, parse_size, plan_shards
from model.hf.weights import read_tensors
from model.parallel import AxisRules, MeshConfig, make_mesh

LARGEST_MULTIPLE = 65536


def run_import(
    folder: str, out: str, *, dtype: str | None, template: str | None, vocab_multiple: int, console: Console
) -> int:
    """Writes the model of a Hugging Face folder as a run directory with one checkpoint, step 0.

    `dtype` None keeps the folder's own. The vocabulary is padded to a multiple of `vocab_multiple` rows. Nothing is
    left under `out` after an error. Raises what opening the folder raises, and TensorError if `out` is taken.
    """
    began = time.monotonic()
    if not 1 <= vocab_multiple <= LARGEST_MULTIPLE:
        raise ValueError(f"--vocab-multiple {vocab_multiple}; give a number from 1 to {LARGEST_MULTIPLE}")
    set_up_process(keep_memory=False)
    hub = open_hub(folder)
    if dtype is None and hub.holds_float64:
        raise ValueError(f"{folder} holds float64 tensors, which would be rounded; say to what: --dtype float32")
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, hub.cfg, folder)
    chat = _find_chat(tokenizer, template, hub.facts, console)
    cfg = msgspec.structs.replace(hub.cfg, vocab_padding=-hub.cfg.vocab_size % vocab_multiple)
    stored = np.dtype(dtype) if dtype else hub.widest_dtype
    with building(out) as fresh:
        tokenizer.save(fresh / "tokenizer")
        if chat:
            save_chat(chat, fresh / "tokenizer")
        meta = describe_hub(hub, tokenizer, chat) | {
            "model": msgspec.to_builtins(cfg), "dtype": str(stored),
            "versions": library_versions(),
        }  # fmt: skip
        with jax.set_mesh(_whole_mesh(cfg)):
            write_model(fresh, hub.load(AxisRules(), dtype=stored, vocab_padding=cfg.vocab_padding), meta)
    count = sum(math.prod(tensor.shape) for tensor in hub.source.tensors)
    padding = f", {cfg.vocab_padding} rows of vocabulary padding" if cfg.vocab_padding else ""
    console.print(
        f"imported {hub.facts.model_type}: {count:,} parameters in {stored}{padding}, {time.monotonic() - began:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def run_export(
    checkpoint: str,
    out: str,
    *,
    dtype: str | None,
    max_shard_size: str,
    weights: Weights = "params",
    console: Console,
) -> int:
    """Writes a checkpoint as a Hugging Face folder, reads every tensor back and compares it.

    `dtype` None: that of the folder the model came from, tensor by tensor, or float32. Nothing is left under `out`
    after an error. Raises what opening the checkpoint raises, FamilyError for a model that no family can say.
    """
    began = time.monotonic()
    set_up_process(keep_memory=False)
    shard_bytes = parse_size(max_shard_size)
    opened = open_model(checkpoint, weights=weights)
    cfg = opened.cfg
    facts = msgspec.convert(opened.meta["hub"], HubFacts) if opened.meta.get("hub") else None
    family, values = (family_of(facts.model_type), dict(facts.config)) if facts else write_config(cfg)
    dtypes = _choose_dtypes(family, cfg, facts, dtype)
    prefix = facts.prefix if facts else ""
    with building(out) as fresh, jax.set_mesh(_whole_mesh(cfg)):
        params = opened.load(cfg, AxisRules())

        def tensors() -> Iterator[tuple[str, np.ndarray]]:
            return (
                (prefixed(family, prefix, name), array) for name, array in read_tensors(family, cfg, params, dtypes)
            )

        _write_json(fresh / "config.json", _describe_config(values, family, opened, dtypes))
        _write_json(fresh / GENERATION_FILE, _describe_generation(facts, opened))
        jinja = opened.chat.jinja if opened.chat else None
        write_hub_tokenizer(opened.tokenizer, fresh, chat_template=jinja, model_type=family.model_type)
        specs = [
            TensorSpec(prefixed(family, prefix, name), shape, dtypes[name]) for name, shape in _list_shapes(family, cfg)
        ]
        with FolderWriter(fresh, plan_shards(specs, shard_bytes)) as writer:
            for name, array in tensors():
                writer.write(name, array)
        compare_folder(fresh, tensors())
        write_model_card(fresh / "README.md", opened, family=family, dtype=str(_main_dtype(dtypes)))
    console.print(
        f"exported {family.architecture}: {_count(specs):,} parameters in {_main_dtype(dtypes)}, every tensor read "
        f"back and equal, {time.monotonic() - began:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _find_chat(tokenizer: Tokenizer, template: str | None, facts: HubFacts, console: Console) -> ChatTemplate | None:
    if template is None and tokenizer.chat_template is None:
        console.print(
            "[bold yellow]no chat template[/] came with this tokenizer: training and conversations will need "
            "tokenizer.template, or import again with --template"
        )
        return None
    try:
        return load_chat(tokenizer, template, extra_stop_ids=stop_ids_of(facts))
    except DataError as error:
        if template is not None:
            raise
        raise DataError(f"{error}. To import it with another template: --template NAME_OR_FILE") from None


def _whole_mesh(cfg: ModelConfig) -> jax.sharding.Mesh:
    """All devices on the fsdp axis, or as many as divide the model's width."""
    count = math.gcd(jax.device_count(), cfg.dim)
    return make_mesh(MeshConfig(fsdp=count), jax.devices()[:count])


def _choose_dtypes(family: Family, cfg: ModelConfig, facts: HubFacts | None, dtype: str | None) -> dict[str, np.dtype]:
    """The dtype of every tensor by its name in the family's table."""
    names = [name for name, _ in _list_shapes(family, cfg)]
    if dtype is not None or facts is None:
        return dict.fromkeys(names, np.dtype(dtype or "float32"))
    stored = {name: np.dtype(facts.other_dtypes.get(name, facts.dtype)) for name in names}
    return {name: np.dtype(np.float32) if each == np.float64 else each for name, each in stored.items()}


def _describe_config(
    values: dict[str, Any], family: Family, opened: OpenModel, dtypes: dict[str, np.dtype]
) -> dict[str, Any]:
    """config.json: as it came, or as the family writes it, with what the export itself decides."""
    described = {"architectures": [family.architecture], "model_type": family.model_type, **values}
    described["dtype" if "dtype" in values else "torch_dtype"] = str(_main_dtype(dtypes))
    if opened.meta.get("hub") is None or opened.meta.get("own_tokenizer"):
        described |= {
            "bos_token_id": opened.tokenizer.bos_id, "eos_token_id": opened.stop_ids[0],
            "pad_token_id": opened.tokenizer.pad_id,
            "max_position_embeddings": opened.max_length,
            **{key: value for key, value in values.items() if not key.endswith("_token_id")},
        }  # fmt: skip
    return described


def _describe_generation(facts: HubFacts | None, opened: OpenModel) -> dict[str, Any]:
    """generation_config.json with every id that ends an answer: without one of them a model talks on."""
    given = dict((facts.generation_config if facts else None) or {})
    if opened.meta.get("own_tokenizer"):
        given = {key: value for key, value in given.items() if not key.endswith("_token_id")}
    tokenizer = opened.tokenizer
    described = {
        **({"bos_token_id": tokenizer.bos_id} if tokenizer.bos_id is not None else {}),
        "pad_token_id": tokenizer.pad_id,
        **given,
    }
    return described | ({"eos_token_id": list(opened.stop_ids)} if opened.stop_ids else {})


def _list_shapes(family: Family, cfg: ModelConfig) -> list[tuple[str, tuple[int, ...]]]:
    """Every tensor's name in the family's table and its shape, in the order they are written."""
    return [(each.name, each.shape) for each in (*hub_tensors(family, cfg), *constant_tensors(family, cfg))]


def _main_dtype(dtypes: dict[str, np.dtype]) -> np.dtype:
    return max(set(dtypes.values()), key=list(dtypes.values()).count)


def _count(specs: list[TensorSpec]) -> int:
    return sum(math.prod(spec.shape) for spec in specs)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
