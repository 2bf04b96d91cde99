"""The recipe that a run directory holds, perhaps of an earlier version: read, filled in, held against today's."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from launch.config import FREE_TO_CHANGE, FREE_WITH_A_CHANGED_PLAN, Recipe, RecipeError
from launch.recipe import decode_recipe, flatten, parse_yaml, recipe_tree
from model.config import ModelConfig
from model.parallel import AxisRules
from model.transformer import abstract
from train.matrices import is_matrix
from train.paths import list_paths


class StoredRecipe(NamedTuple):
    """A recipe as a run directory holds it."""

    recipe: Recipe
    filled_in: tuple[str, ...]
    """Fields that it lacks, which took their defaults: it was written before they existed."""


def read_stored(text: str, name: str) -> StoredRecipe:
    """The recipe in a run's `recipe.yaml`, which `name` is.

    Raises RecipeError for fields that this version does not have: what they did, it would not do.
    """
    tree = parse_yaml(text, name)
    if not isinstance(tree, dict):
        raise RecipeError(f"{name} is no recipe; put back the one that was written with the run")
    try:
        recipe = decode_recipe(tree, name)
    except RecipeError as error:
        raise RecipeError(
            f"{error}. Another version of polytune wrote it: go on with that one; or, where a field only says "
            f"how fast to compute or what to log, take it out of {name}"
        ) from None
    return StoredRecipe(recipe, tuple(_list_missing(recipe_tree(recipe), tree)))


def describe_filled_in(fields: Sequence[str]) -> str:
    """One line on the fields that a stored recipe lacks."""
    count = f"{len(fields)} field{'s' if len(fields) > 1 else ''} took {'their' if len(fields) > 1 else 'its'}"
    return f"recipe of an earlier version: {count} default{'s' if len(fields) > 1 else ''}: {', '.join(fields)}"


def check_same_run(recipe: Recipe, run_dir: Path, cfg: ModelConfig | None) -> tuple[str, ...]:
    """The fields that the run's stored recipe lacks; none in a directory without a run.

    Raises RecipeError when the directory holds a run of a recipe that differs in more than speed or logging, or of a
    version that did something else where a field is left out. `cfg`: the model; None if it is not known.
    """
    path = run_dir / "recipe.yaml"
    if not path.exists():
        return ()
    stored = read_stored(path.read_text(encoding="utf-8"), str(path))
    there, here = flatten(recipe_tree(stored.recipe)), flatten(recipe_tree(recipe))
    stories = {key: tell(stored.recipe, cfg) for key, tell in _DID_OTHERWISE.items() if key in stored.filled_in}
    told = {key: story for key, story in stories.items() if story is not None}
    for key, story in told.items():
        if (key, there[key]) in here.items():
            raise RecipeError(f"{run_dir} was begun before {key} existed: {story}")
    # In the order of a recipe's fields: what was chosen comes before the options that follow from it.
    differing = [key for key in dict.fromkeys([*here, *there]) if there.get(key) != here.get(key)]
    allowed = (*FREE_TO_CHANGE, *told) + (FREE_WITH_A_CHANGED_PLAN if recipe.data.changed_plan == "accept" else ())
    differing = [key for key in differing if not any(key == free or key.startswith(free + ".") for free in allowed)]
    if differing:
        shown = "; ".join(
            f"{key}: {there.get(key, '(absent)')!r} there, {here.get(key, '(absent)')!r} here" for key in differing[:5]
        )
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise RecipeError(
            f"{run_dir} holds another recipe's run: {shown}{more}. "
            "Use another run.dir, or give the values it was started with"
        )
    return stored.filled_in


def _list_missing(whole: Any, tree: Any, path: str = "") -> Iterator[str]:
    """Dotted keys of `whole` that `tree` lacks, the outermost only."""
    if isinstance(whole, list | tuple) and isinstance(tree, list):
        whole, tree = dict(enumerate(whole)), dict(enumerate(tree))
    if not isinstance(whole, dict) or not isinstance(tree, dict):
        return
    for key, value in whole.items():
        inner = f"{path}.{key}" if path else str(key)
        if key not in tree:
            yield inner
        else:
            yield from _list_missing(value, tree[key], inner)


def _tell_decay(stored: Recipe, cfg: ModelConfig | None) -> str | None:
    """Before there were patterns, everything but scales decayed; of most models that is the matrices, as now."""
    if cfg is None or not stored.optim.weight_decay:
        return None
    whole = AxisRules(**dict.fromkeys(AxisRules.__struct_fields__))
    paths = list_paths(abstract(msgspec.structs.replace(cfg, vocab_size=cfg.vocab_size or 1), whole))
    decayed = {path.rpartition("/")[2] for path in paths} - {"scale"}
    if all(map(is_matrix, decayed)):
        return None
    patterns = ",".join(f"'*/{name}'" for name in sorted(decayed))
    return f"all parameters but scales decayed then; give optim.weight_decay_params=[{patterns}] to go on so"


_DID_OTHERWISE: dict[str, Callable[[Recipe, ModelConfig | None], str | None]] = {
    "optim.weight_decay_params": _tell_decay
}
"""Fields whose default is not always what was done before they existed: what was done instead, None where the same."""
