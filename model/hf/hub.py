"""A Hugging Face model folder as a model: its config understood, its tensors checked, its parameters loaded."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from model.config import ModelConfig
from model.hf.config_file import FamilyError, read_config_file
from model.hf.family import Family
from model.hf.registry import read_model
from model.hf.tensors import open_folder
from model.hf.weights import Source, check_folder, load_params
from model.parallel import AxisRules
from model.transformer import Params

GENERATION_FILE = "generation_config.json"


class HubFacts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a checkpoint keeps of the folder it came from, so that export gives it back."""

    model_type: str
    config: dict[str, Any]
    """config.json as it was."""
    generation_config: dict[str, Any] | None
    dtype: str
    """Of most of its numbers."""
    other_dtypes: dict[str, str]
    """Of the tensors that have another one."""
    prefix: str
    """Before every tensor's name, where the family has folders with and without one."""


class HubModel(NamedTuple):
    """A folder that is known to be whole and to fit its config.json."""

    path: Path
    family: Family
    cfg: ModelConfig
    facts: HubFacts
    source: Source

    def load(self, axes: AxisRules, *, dtype: np.dtype | None, vocab_padding: int = 0) -> Params:
        """Its parameters on the mesh in use, in its own widest dtype if none is given."""
        cfg = msgspec.structs.replace(self.cfg, vocab_padding=vocab_padding)
        return load_params(self.source, axes, dtype=dtype or self.widest_dtype, cfg=cfg)

    @property
    def widest_dtype(self) -> np.dtype:
        """A dtype that holds every tensor exactly; float32 if some are float64, which parameters never are."""
        found = self._dtypes
        return found.pop() if len(found) == 1 and not self.holds_float64 else np.dtype(np.float32)

    @property
    def holds_float64(self) -> bool:
        """Whether any tensor is wider than parameters can be."""
        return np.dtype(np.float64) in self._dtypes

    @property
    def _dtypes(self) -> set[np.dtype]:
        return {np.dtype(self.facts.dtype), *map(np.dtype, self.facts.other_dtypes.values())}


def is_hub_folder(path: str | Path) -> bool:
    """Whether a path looks like a Hugging Face model folder: it has a config.json, and no run's checkpoints."""
    path = Path(path)
    return (path / "config.json").is_file() and not (path / "checkpoints").is_dir()


def open_hub(path: str | Path) -> HubModel:
    """The model of a folder, every name, shape and type checked and no large tensor read.

    Raises FamilyError for a config.json that is not understood, TensorError for tensors that do not fit it or
    files that are damaged.
    """
    path = Path(path)
    values = read_config_file(path)
    family, cfg = read_model(values, origin=str(path / "config.json"))
    folder = open_folder(path)
    source = check_folder(folder, family, cfg)
    dtypes = {name: str(folder.dtype(stored)) for name, stored in source.stored_names.items()}
    sizes: dict[str, int] = {}
    for name, stored in source.stored_names.items():
        sizes[dtypes[name]] = sizes.get(dtypes[name], 0) + folder.stored(stored).size_bytes
    most = max(sizes, key=lambda each: sizes[each])
    has_prefix = any(stored != name for name, stored in source.stored_names.items())
    facts = HubFacts(
        model_type=family.model_type,
        config=values,
        generation_config=_read_generation_config(path),
        dtype=most,
        other_dtypes={name: dtype for name, dtype in dtypes.items() if dtype != most},
        prefix=family.optional_prefix if has_prefix else "",
    )
    return HubModel(path, family, cfg, facts, source)


def stop_ids_of(facts: HubFacts) -> tuple[int, ...]:
    """Every id that ends a generation: `eos_token_id` of generation_config.json, or of config.json without one."""
    for values in (facts.generation_config or {}, facts.config):
        given = values.get("eos_token_id")
        if given is None:
            continue
        ids = given if isinstance(given, list) else [given]
        if not all(type(token) is int and 0 <= token < 2**31 for token in ids):
            raise FamilyError(f"eos_token_id is {given!r} in config.json or generation_config.json; it should be an id")
        return tuple(ids)
    return ()


def _read_generation_config(path: Path) -> dict[str, Any] | None:
    file = path / GENERATION_FILE
    if not file.exists():
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FamilyError(f"{file} cannot be read as JSON ({error}); copy it again, or remove it") from None
    if not isinstance(values, dict):
        raise FamilyError(f"{file} holds a {type(values).__name__}; it should be a JSON object")
    return values
