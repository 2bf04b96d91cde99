"""What a run starts from: random parameters of a config, a Hugging Face folder, or a checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import msgspec

from data.config import TokenizerConfig
from data.tokenizer import load_tokenizer
from eval.opening import load_matching_tokenizer
from launch.config import Recipe, RecipeError
from model.checkpoint import decode_model, find_checkpoint, load_params, newest_step, read_meta
from model.config import ModelConfig
from model.hf.config_file import read_config_file
from model.hf.hub import is_hub_folder, open_hub, stop_ids_of
from model.hf.registry import read_model
from model.parallel import AxisRules, MeshConfig, make_mesh, padding_for
from model.presets import resolve_mesh
from model.transformer import Params, abstract


class Origin(NamedTuple):
    """A model to start from, its parameters not loaded yet."""

    cfg: ModelConfig
    """`vocab_size` 0: the tokenizer's, which a run without a given model makes itself."""
    tokenizer: TokenizerConfig
    stop_ids: tuple[int, ...]
    """Ids that end an answer besides those that the template knows."""
    load: Callable[[AxisRules], Params] | None
    """Float32 parameters on the mesh in use; None for random ones, or a run's own."""
    meta: dict[str, Any]
    """Kept with every checkpoint: where an export finds the folder's config again."""


def size_mesh(recipe: Recipe, devices: int) -> MeshConfig:
    """The recipe's mesh with the sizes that its preset, if it has one, gives so many devices.

    Raises ValueError when the preset has none that work, and what opening the recipe's start raises.
    """
    if recipe.mesh.preset is None:
        return recipe.mesh
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):  # sizes of a start do not depend on its mesh
        cfg = foresee_vocabulary(recipe, open_origin(recipe))
    rows, length = recipe.train.batch_rows // recipe.train.microbatches, recipe.data.packing.row_length
    return resolve_mesh(recipe.mesh, cfg, devices=devices, rows=rows, row_length=length, axes=recipe.axes)


def foresee_vocabulary(recipe: Recipe, origin: Origin) -> ModelConfig:
    """The model with a vocabulary, before any data is read: its own, or else that of the run's newest checkpoint, of
    the tokenizer's file, or the one that a tokenizer is to be trained with, which becomes smaller where texts are few.

    Raises what opening a tokenizer raises.
    """
    run_dir = Path(recipe.run.dir)
    if origin.cfg.vocab_size:
        return origin.cfg
    if newest_step(run_dir) is not None:
        found = find_checkpoint(run_dir)
        size = decode_model(read_meta(found), found).vocab_size
    elif origin.tokenizer.path is not None:
        size = load_tokenizer(origin.tokenizer.path).vocab_size
    else:
        size = origin.tokenizer.vocab_size
    return msgspec.structs.replace(origin.cfg, vocab_size=size)


def open_origin(recipe: Recipe) -> Origin:
    """The start that a recipe's `model` asks for, on the mesh in use; nothing large is read.

    A run that has a checkpoint goes on with the model that is in it, whatever has become of its start since. Raises
    RecipeError for a path that is none, a start that has changed under a run, or a run directory that holds no run; and
    what opening a folder or checkpoint raises.
    """
    run_dir = Path(recipe.run.dir)
    if isinstance(recipe.model, ModelConfig):
        return Origin(recipe.model, recipe.tokenizer, (), None, {})
    if newest_step(run_dir) is not None:
        return _open_own(run_dir, Path(recipe.model), recipe.tokenizer)
    path = Path(recipe.model)
    if is_hub_folder(path):
        return _open_hub(path, recipe.tokenizer, recipe.axes)
    if not path.is_dir():
        raise RecipeError(
            f"model: {recipe.model!r} is no folder; give a Hugging Face folder, a run directory, RUN/checkpoints/STEP, "
            "or the fields of a model (num_layers, dim, ...)"
        )
    return _open_checkpoint(path, recipe.tokenizer)


def _open_own(run_dir: Path, start: Path, tokenizer: TokenizerConfig) -> Origin:
    """The model of the run's own newest checkpoint."""
    found = find_checkpoint(run_dir)
    meta = read_meta(found)
    if meta.get("plan_hash") is None:
        raise RecipeError(
            f"{run_dir} holds an imported model, not a run; start from it: model={run_dir} and another run.dir"
        )
    cfg = decode_model(meta, found)
    if is_hub_folder(start):
        _, now = read_model(read_config_file(start), origin=str(start / "config.json"))
        if now != msgspec.structs.replace(cfg, vocab_padding=0):
            raise RecipeError(
                f"{start}/config.json is not what {run_dir} was started from; restore it, or use another run.dir"
            )
        folder = start
    else:
        folder = _tokenizer_of(start) if start.is_dir() else run_dir / "tokenizer"
    chosen, stop_ids, _ = _choose_tokenizer(tokenizer, folder, tuple(meta["origin_stop_ids"]))
    kept = {key: meta[key] for key in ("hub", "own_tokenizer", "origin_stop_ids") if key in meta}
    return Origin(cfg, chosen, stop_ids, None, kept)


def _open_hub(path: Path, tokenizer: TokenizerConfig, axes: AxisRules) -> Origin:
    hub = open_hub(path)
    padding = padding_for(hub.cfg.vocab_size, axes, jax.sharding.get_mesh())
    cfg = msgspec.structs.replace(hub.cfg, vocab_padding=padding)

    def load(axes: AxisRules) -> Params:
        return hub.load(axes, dtype=jax.numpy.dtype("float32"), vocab_padding=padding)

    own_stop_ids = stop_ids_of(hub.facts)
    chosen, stop_ids, replaced = _choose_tokenizer(tokenizer, path, own_stop_ids)
    meta = {"hub": msgspec.to_builtins(hub.facts), "own_tokenizer": replaced}
    return Origin(cfg, chosen, stop_ids, load, meta | {"origin_stop_ids": list(own_stop_ids)})


def _open_checkpoint(path: Path, tokenizer: TokenizerConfig) -> Origin:
    found = find_checkpoint(path)
    meta = read_meta(found)
    cfg = decode_model(meta, found)
    if tokenizer.path is None:
        load_matching_tokenizer(found, meta)

    def load(axes: AxisRules) -> Params:
        return load_params(found, abstract(cfg, axes))

    own_stop_ids = tuple(meta.get("stop_ids", ()))
    chosen, stop_ids, replaced = _choose_tokenizer(tokenizer, found.run_dir / "tokenizer", own_stop_ids)
    replaced = replaced or meta.get("own_tokenizer", False)
    kept: dict[str, Any] = {"own_tokenizer": replaced, "origin_stop_ids": list(own_stop_ids)}
    return Origin(cfg, chosen, stop_ids, load, kept | ({"hub": meta["hub"]} if meta.get("hub") else {}))


def _choose_tokenizer(
    tokenizer: TokenizerConfig, folder: Path, stop_ids: tuple[int, ...]
) -> tuple[TokenizerConfig, tuple[int, ...], bool]:
    """The tokenizer and stop ids of a run, and whether it is another one than the model's own.

    None of the model's ids means anything to another tokenizer.
    """
    if tokenizer.path is None or Path(tokenizer.path).resolve() == folder.resolve():
        return msgspec.structs.replace(tokenizer, path=str(folder)), stop_ids, False
    return tokenizer, (), True


def _tokenizer_of(path: Path) -> Path:
    return find_checkpoint(path).run_dir / "tokenizer"
