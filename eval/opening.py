"""The model an evaluation or a conversation asks: a run's checkpoint, an imported one, or a Hugging Face folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec
import numpy as np

from data.chat import ChatTemplate, list_templates, load_chat, load_saved_chat
from data.tokenizer import Tokenizer, fits_vocabulary, load_tokenizer
from eval.config import EvalError
from eval.engine import Model
from model.checkpoint import (
    CheckpointPath,
    Weights,
    check_weights,
    decode_model,
    find_checkpoint,
    load_params,
    read_meta,
)
from model.config import ComputeConfig, ModelConfig
from model.hf.hub import HubModel, is_hub_folder, open_hub, stop_ids_of
from model.parallel import ANSWERING, AxisRules, check_divisible, padding_for, sharded_sizes
from model.transformer import Params, abstract

LONGEST = 4096
"""Tokens of a request where nothing says how long the model was trained for."""


class OpenModel(NamedTuple):
    """A model whose files have been looked at and whose parameters have not been loaded."""

    run_dir: Path
    step: int
    cfg: ModelConfig
    meta: dict[str, Any]
    tokenizer: Tokenizer
    chat: ChatTemplate | None
    """None for a model that was never given a chat template."""
    max_length: int
    """The longest request it was trained for, as far as that is known."""
    load: Callable[[ModelConfig, AxisRules], Params]
    """Parameters of this config, its own but for vocabulary padding, on the mesh in use."""
    is_padded_freely: bool
    """Whether vocabulary padding may follow the mesh."""
    weights: Weights = "params"

    @property
    def results_dir(self) -> Path:
        """Where results of these weights go by default."""
        return self.run_dir / "eval" / (f"{self.step}" if self.weights == "params" else f"{self.step}-{self.weights}")

    @property
    def recipe(self) -> dict[str, Any] | None:
        """Of the run that trained it; None for a model that was not trained here."""
        return self.meta.get("recipe")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return self.chat.stop_ids if self.chat else tuple(self.meta["stop_ids"])

    def need_chat(self) -> ChatTemplate:
        """The chat template. Raises EvalError if there is none."""
        if self.chat is None:
            raise EvalError(
                "this model came without a chat template; give one with --template: a file, or one of "
                f"{', '.join(list_templates())}"
            )
        return self.chat


def open_model(path: str | Path, *, template: str | None = None, weights: Weights = "params") -> OpenModel:
    """The model at a run directory (newest step), `RUN/checkpoints/STEP` or a Hugging Face folder.

    `template` replaces the chat template that came with it; `weights` chooses among a checkpoint's. Raises
    CheckpointError, FamilyError, TensorError, DataError or EvalError for one that is missing, damaged or not
    understood.
    """
    if not is_hub_folder(path):
        return _open_checkpoint(path, template, weights)
    if weights != "params":
        raise EvalError(f"{path} is a Hugging Face folder, it holds one set of weights; leave out --weights {weights}")
    return _open_hub(Path(path), template)


def load_model(opened: OpenModel, compute: ComputeConfig) -> Model:
    """The model on the mesh in use, ready to answer.

    Raises ValueError for a mesh that does not divide it, and what reading its files raises.
    """
    axes, mesh, cfg = ANSWERING, jax.sharding.get_mesh(), opened.cfg
    if opened.is_padded_freely:
        cfg = msgspec.structs.replace(cfg, vocab_padding=padding_for(cfg.vocab_size, axes, mesh))
    check_divisible(sharded_sizes(cfg, axes), mesh)
    return Model(cfg, axes, opened.load(cfg, axes), compute)


def with_dtype(params: Params, dtype: str) -> Params:
    """Abstract parameters of another dtype."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.dtype(dtype), sharding=leaf.sharding), params)


def load_matching_tokenizer(checkpoint: CheckpointPath, meta: dict[str, Any]) -> Tokenizer:
    """The run's tokenizer; EvalError when the model was trained with another, DataError where files are damaged."""
    folder = checkpoint.run_dir / "tokenizer"
    tokenizer = load_tokenizer(folder)
    if tokenizer.hash != meta["tokenizer_hash"]:
        raise EvalError(
            f"{folder} has hash {tokenizer.hash[:12]}, the checkpoint was trained "
            f"with {meta['tokenizer_hash'][:12]}; put that run's own tokenizer folder back"
        )
    return tokenizer


def load_matching_chat(checkpoint: CheckpointPath, meta: dict[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
    """The run's template over its tokenizer, if it has one; EvalError when the model was trained with another.

    Raises DataError where the files themselves are damaged.
    """
    if meta["template_hash"] is None:
        return None
    folder = checkpoint.run_dir / "tokenizer"
    chat = load_saved_chat(tokenizer, folder)
    if chat.hash != meta["template_hash"]:
        raise EvalError(
            f"{folder}: the chat template has hash {chat.hash[:12]}, the checkpoint was trained with "
            f"{meta['template_hash'][:12]}; put that run's own tokenizer folder back, or evaluate it with the polytune "
            "version that trained it"
        )
    return chat


def _open_checkpoint(path: str | Path, template: str | None, weights: Weights) -> OpenModel:
    found = find_checkpoint(path)
    check_weights(found.path, weights)
    meta = read_meta(found)
    tokenizer = load_matching_tokenizer(found, meta)
    if template is None:
        chat = load_matching_chat(found, meta, tokenizer)
    else:
        chat = load_chat(tokenizer, template, extra_stop_ids=meta.get("stop_ids", ()))

    def load(cfg: ModelConfig, axes: AxisRules) -> Params:
        return load_params(found, with_dtype(abstract(cfg, axes), meta.get("dtype", "float32")), weights=weights)

    cfg = decode_model(meta, found)
    return OpenModel(
        found.run_dir, found.step, cfg, meta, tokenizer, chat, meta["row_length"], load, is_padded_freely=False,
        weights=weights,
    )  # fmt: skip


def _open_hub(path: Path, template: str | None) -> OpenModel:
    hub = open_hub(path)
    tokenizer = load_tokenizer(path)
    check_vocabulary(tokenizer, hub.cfg, path)
    has_template = template is not None or tokenizer.chat_template is not None
    chat = load_chat(tokenizer, template, extra_stop_ids=stop_ids_of(hub.facts)) if has_template else None

    def load(cfg: ModelConfig, axes: AxisRules) -> Params:
        return hub.load(axes, dtype=None, vocab_padding=cfg.vocab_padding)

    meta = describe_hub(hub, tokenizer, chat)
    return OpenModel(path, 0, hub.cfg, meta, tokenizer, chat, meta["row_length"], load, is_padded_freely=True)


def check_vocabulary(tokenizer: Tokenizer, cfg: ModelConfig, where: str | Path) -> None:
    """Raises EvalError when text can become ids that the model has no embedding for."""
    if not fits_vocabulary(tokenizer, cfg.vocab_size):
        raise EvalError(
            f"{where}: the tokenizer has ids up to {tokenizer.vocab_size - 1}, the model embeds {cfg.vocab_size}; "
            "tokenizer and config.json are not of the same model"
        )


def describe_hub(hub: HubModel, tokenizer: Tokenizer, chat: ChatTemplate | None) -> dict[str, Any]:
    """The `meta` of a checkpoint that holds this model."""
    return {
        "model": msgspec.to_builtins(hub.cfg),
        "dtype": str(hub.widest_dtype),
        "recipe": None,
        "row_length": min(hub.facts.config.get("max_position_embeddings") or LONGEST, LONGEST),
        "tokenizer_hash": tokenizer.hash,
        "template_hash": chat.hash if chat else None,
        "stop_ids": list(stop_ids_of(hub.facts)),
        "hub": msgspec.to_builtins(hub.facts),
    }
