"""What a run starts from: random parameters of a config, a Hugging Face folder, or a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec

from data.config import TokenizerConfig
from launch.config import Recipe, RecipeError
from model.checkpoint import find_checkpoint, load_params, read_meta
from model.config import ModelConfig
from model.hf.hub import is_hub_folder, open_hub, stop_ids_of
from model.parallel import AxisRules, ways
from model.transformer import Params, abstract


class Origin(NamedTuple):
    """A model to start from, its parameters not loaded yet."""

    cfg: ModelConfig
    """`vocab_size` 0: the tokenizer's, which a run without a given model makes itself."""
    tokenizer: TokenizerConfig
    stop_ids: tuple[int, ...]
    """Ids that end an answer besides those that the template knows."""
    load: Callable[[AxisRules], Params] | None
    """Float32 parameters on the mesh in use; None for random ones."""
    meta: dict[str, Any]
    """Kept with every checkpoint: where an export finds the folder's config again."""


def open_origin(recipe: Recipe) -> Origin:
    """The start that a recipe's `model` asks for, on the mesh in use; nothing large is read.

    Raises RecipeError for a path that is neither, and what opening a folder or checkpoint raises.
    """
    if isinstance(recipe.model, ModelConfig):
        return Origin(recipe.model, recipe.tokenizer, (), None, {})
    path = Path(recipe.model)
    if is_hub_folder(path):
        return _open_hub(path, recipe.tokenizer)
    if not path.is_dir():
        raise RecipeError(
            f"model: {recipe.model!r} is no folder; give a Hugging Face folder, a run directory, RUN/checkpoints/STEP, "
            "or the fields of a model (num_layers, dim, ...)"
        )
    return _open_checkpoint(path, recipe.tokenizer)


def _open_hub(path: Path, tokenizer: TokenizerConfig) -> Origin:
    hub = open_hub(path)
    padding = -hub.cfg.vocab_size % ways(AxisRules().vocab, jax.sharding.get_mesh())
    cfg = msgspec.structs.replace(hub.cfg, vocab_padding=padding)

    def load(axes: AxisRules) -> Params:
        return hub.load(axes, dtype=jax.numpy.dtype("float32"), vocab_padding=padding)

    meta = {"hub": msgspec.to_builtins(hub.facts)}
    return Origin(cfg, _with_default_path(tokenizer, path), stop_ids_of(hub.facts), load, meta)


def _open_checkpoint(path: Path, tokenizer: TokenizerConfig) -> Origin:
    found = find_checkpoint(path)
    meta = read_meta(found)
    cfg = msgspec.convert(meta["model"], ModelConfig)

    def load(axes: AxisRules) -> Params:
        return load_params(found, abstract(cfg, axes))

    chosen = _with_default_path(tokenizer, found.run_dir / "tokenizer")
    return Origin(cfg, chosen, tuple(meta.get("stop_ids", ())), load, {"hub": meta["hub"]} if meta.get("hub") else {})


def _with_default_path(tokenizer: TokenizerConfig, path: Path) -> TokenizerConfig:
    return tokenizer if tokenizer.path else msgspec.structs.replace(tokenizer, path=str(path))
