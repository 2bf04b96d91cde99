"""Imports point down: launch -> train, eval -> model, data. Nothing else, not even inside a function."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = {
    "launch": {"train", "eval", "model", "data"},
    "train": {"model", "data"},
    "eval": {"model", "data"},
    "model": set(),
    "data": set(),
}
"""What each folder may import of the others."""
OWNERS = {
    "flax": {"model"},
    "optax": {"train"},
    "orbax": {"model", "train"},
    "jax": {"model", "train", "eval", "launch"},
    "torch": set(),
    "tensorflow": set(),
}
"""Which folders may import a library; one that is not listed is free to all."""
DYNAMIC = {"import_module", "__import__"}


def imported_modules(source: str) -> list[tuple[int, str]]:
    """Line and dotted name of every import in the source, wherever it is; relative ones start with a dot."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{alias.name}" for alias in node.names] if module in ALLOWED else [module]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Call) and _called_name(node) in DYNAMIC:
            argument = node.args[0] if node.args else None
            name = argument.value if isinstance(argument, ast.Constant) else "(computed name)"
            found.append((node.lineno, str(name)))
    return found


def violations(folder: str, source: str, where: str) -> list[str]:
    """What a file of this folder imports and must not."""
    wrong = []
    for line, name in imported_modules(source):
        top = name.split(".")[0]
        if name.startswith(".") or name == "(computed name)":
            wrong.append(f"{where}:{line}: {name or 'relative'}: import by the full, literal name")
        elif top in ALLOWED and top != folder and top not in ALLOWED[folder]:
            wrong.append(f"{where}:{line}: {folder} must not import {name}")
        elif top in ALLOWED and name == top:
            wrong.append(f"{where}:{line}: import a module of {top}, not the folder")
        elif top in OWNERS and folder not in OWNERS[top]:
            wrong.append(f"{where}:{line}: {folder} must not import {name}")
    return wrong


def _called_name(call: ast.Call) -> str:
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_point_down(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert len(files) > 3, f"{folder}/ is not where this test looks for it"
    wrong = [
        message
        for path in files
        for message in violations(folder, path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("data", "import jax"),
        ("data", "import jax.numpy as jnp"),
        ("data", "from jax import numpy"),
        ("data", "from model.config import ModelConfig"),
        ("eval", "from train.metrics import read_metrics"),
        ("train", "import eval.scoring"),
        ("train", "def f():\n    from eval import scoring"),
        ("train", "if TYPE_CHECKING:\n    import launch.config"),
        ("train", "import flax.linen as nn"),
        ("eval", "import flax"),
        ("model", "from data.batch import Batch"),
        ("model", "class A:\n    import optax"),
        ("launch", "import optax"),
        ("launch", "from orbax.checkpoint import v1"),
        ("eval", "import importlib\nimportlib.import_module('train.loop')"),
        ("eval", "name = 'train'\n__import__(name)"),
        ("train", "from . import loop"),
        ("launch", "import eval"),
        ("launch", "from train import loop, step\nimport torch"),
    ],
)
def test_a_planted_violation_is_found(folder, source):
    assert len(violations(folder, source, "planted.py")) == 1


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("launch", "from train.loop import run_training\nfrom eval.run import run_eval\nimport jax"),
        ("train", "import optax\nimport model.transformer as transformer\nfrom data.batch import Batch"),
        ("eval", "from model import decode\nfrom data import packing"),
        ("data", "from jaxtyping import Float32\nimport numpy\nfrom data.batch import Batch"),
        ("model", "import flax.linen as nn\nfrom model.rope import rotate"),
        ("data", "TEXT = 'import jax'"),
    ],
)
def test_an_import_that_points_down_is_let_through(folder, source):
    assert violations(folder, source, "fine.py") == []
