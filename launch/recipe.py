"""Recipes from YAML: load, override, decode strictly, explain what is wrong, write back."""

import difflib
import importlib.resources
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from launch.config import Recipe, RecipeError


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with polytune."""
    folder = importlib.resources.files("launch.recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a shipped name or a YAML file, with `key=value` overrides applied.

    YAML is version 1.2, so `no` is Norwegian and `1e-3` is a number; a key given twice is an error.
    Raises RecipeError.
    """
    tree = parse_yaml(_recipe_text(name), name)
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {type(tree).__name__}"
        raise RecipeError(f"recipe {name} is {found}; it must be a mapping with run, model, data, ...")
    for override in overrides:
        _apply_override(tree, override)
    return decode_recipe(tree, name)


def decode_recipe(tree: dict[str, Any], name: str) -> Recipe:
    """The typed recipe of a tree of plain values; RecipeError names path, value, what was expected, nearest name."""
    _check_finite(tree, name)
    try:
        return msgspec.convert(tree, Recipe)
    except msgspec.ValidationError as error:
        raise RecipeError(f"recipe {name}: {_explain(str(error), tree)}") from None


def recipe_tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, every default filled in."""
    return msgspec.to_builtins(recipe)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe as YAML, in one rename: a kill leaves the old file or the new one, never a part."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(_dump_yaml(recipe_tree(recipe)), encoding="utf-8")
    os.replace(temporary, path)


def _recipe_text(name: str) -> str:
    if name in shipped_recipes():
        return (importlib.resources.files("launch.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        near = difflib.get_close_matches(name, shipped_recipes(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise RecipeError(f"no recipe {name!r}{hint} Give a .yaml file or one of: {', '.join(shipped_recipes())}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {name} is not UTF-8 text ({error}); save it as UTF-8") from None


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[attr-defined]
    yaml.width = 120
    return yaml


def _dump_yaml(tree: Any) -> str:
    yaml, stream = _yaml(), io.StringIO()
    # Unicode's own line ends come back as spaces unless they are escaped, and then everything else is too.
    yaml.allow_unicode = not any(re.search("[\x85\u2028\u2029]", text) for text in _strings(tree))
    yaml.dump(tree, stream)
    return stream.getvalue()


def _strings(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from (*_strings(key), *_strings(value))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _strings(item)


def parse_yaml(text: str, name: str) -> Any:
    """The plain values of a YAML 1.2 text; RecipeError, with `name`, where it is none."""
    try:
        return _yaml().load(text)
    except YAMLError as error:
        raise RecipeError(f"{name} is not valid YAML 1.2: {' '.join(str(error).split())}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"override {override!r} is not key=value; write for example train.steps=100")
    node: Any = tree
    parts = key.split(".")
    for i, part in enumerate(parts[:-1]):
        node = _child(node, part, ".".join(parts[: i + 1]))
    if isinstance(node, list):
        node[_list_index(node, parts[-1], key)] = parse_yaml(text, override)
    else:
        node[parts[-1]] = parse_yaml(text, override)


def _child(node: Any, part: str, path: str) -> Any:
    child = node[_list_index(node, part, path)] if isinstance(node, list) else node.setdefault(part, {})
    if not isinstance(child, dict | list):
        raise RecipeError(f"override {path}: {path} is the value {child!r}, it has no keys inside")
    return child


def _list_index(node: list[Any], part: str, path: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError(
            f"override {path}: {part!r} is not an index of a list of {len(node)}; use 0 to {len(node) - 1}"
        )
    return int(part)


def _explain(message: str, tree: Any) -> str:
    """msgspec's message with the value that was given and, for a wrong name, the nearest right one."""
    what, _, where = message.replace("`key` in `$", "`$").partition(" - at `$")
    steps = _path_steps(where.rstrip("`"))
    path = ".".join(str(step) for step in steps)
    if unknown := re.match(r"Object contains unknown field `(.*)`", what):
        field = unknown.group(1)
        known = _field_names(steps, tree)
        full = ".".join([*map(str, steps), field])
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        hint = f" Did you mean {'.'.join([*map(str, steps), near[0]])}?" if near else ""
        return f"{full}: unknown key (value {_at(tree, [*steps, field])!r}).{hint} Known keys there: {', '.join(known)}"
    if missing := re.match(r"Object missing required field `(.*)`", what):
        given = _at(tree, steps)
        near = difflib.get_close_matches(missing.group(1), given, n=1, cutoff=0.5) if isinstance(given, dict) else []
        hint = f"; is {'.'.join([*map(str, steps), near[0]])} meant to be it?" if near else ""
        return f"{'.'.join([*map(str, steps), missing.group(1)])}: required and not given{hint}"
    value = _at(tree, steps)
    if re.match(r"Invalid (enum )?value", what):
        options = _literal_values(steps, tree)
        near = difflib.get_close_matches(str(value), [str(o) for o in options], n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return f"{path}: {value!r} is not one of {', '.join(map(str, options))}.{hint}"
    return f"{path or 'recipe'}: {what[0].lower() + what[1:]} (value {value!r})".replace("`", "")


def _check_finite(tree: Any, name: str) -> None:
    for path, value in flatten(tree).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RecipeError(f"recipe {name}: {path}: {value} is not a finite number; give one")


def _path_steps(text: str) -> list[str | int]:
    return [
        int(part[1:-1]) if part.startswith("[") else part
        for part in re.findall(r"\[\d+\]|[^.\[\]]+", text)
        if part != "..."
    ]


def _at(tree: Any, steps: Iterable[str | int]) -> Any:
    for step in steps:
        try:
            tree = tree[step]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _types_at(steps: Sequence[str | int], tree: Any) -> list[msgspec.inspect.Type]:
    """The possible types at a path; a tagged union is narrowed by the tag found in the tree."""
    types: list[msgspec.inspect.Type] = [msgspec.inspect.type_info(Recipe)]
    for i, step in enumerate(steps):
        types = [inner for outer in _narrow(types, _at(tree, steps[:i])) for inner in _inside(outer, step)]
    return _narrow(types, _at(tree, steps))


def _narrow(types: list[msgspec.inspect.Type], value: Any) -> list[msgspec.inspect.Type]:
    flat = [
        member for kind in types for member in (kind.types if isinstance(kind, msgspec.inspect.UnionType) else [kind])
    ]
    given = value if isinstance(value, dict) else {}
    tagged: list[msgspec.inspect.Type] = []
    for kind in flat:
        if isinstance(kind, msgspec.inspect.StructType) and kind.tag and given.get(kind.tag_field) == kind.tag:
            tagged.append(kind)
    return tagged or flat


def _inside(kind: msgspec.inspect.Type, step: str | int) -> list[msgspec.inspect.Type]:
    if isinstance(kind, msgspec.inspect.StructType):
        if step == kind.tag_field:
            return [kind]
        return [field.type for field in kind.fields if field.name == step]
    if isinstance(kind, msgspec.inspect.DictType):
        return [kind.value_type]
    if isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
        return [kind.item_type]
    return []


def _field_names(steps: Sequence[str | int], tree: Any) -> list[str]:
    structs = [kind for kind in _types_at(steps, tree) if isinstance(kind, msgspec.inspect.StructType)]
    return sorted({field.name for kind in structs for field in kind.fields})


def _literal_values(steps: Sequence[str | int], tree: Any) -> list[Any]:
    values: list[Any] = []
    for kind in _types_at(steps, tree):
        if isinstance(kind, msgspec.inspect.LiteralType):
            values.extend(kind.values)
        elif isinstance(kind, msgspec.inspect.StructType) and kind.tag:
            values.append(kind.tag)
    return sorted(set(values), key=str)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of plain values as one table from paths (`data.sources.0.kind`) to values."""
    if isinstance(tree, dict) and tree:
        return {
            k: v
            for key, sub in tree.items()
            for k, v in flatten(sub, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if isinstance(tree, list | tuple) and tree:
        return {k: v for i, sub in enumerate(tree) for k, v in flatten(sub, f"{prefix}.{i}").items()}
    return {prefix: [] if isinstance(tree, tuple) else tree}
