"""Every family: found by the `model_type` of a config.json, or by the model that is to be written as one."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from model.config import ModelConfig
from model.hf.config_file import ConfigFile, FamilyError
from model.hf.families import (
    apertus,
    bloom,
    cohere,
    cohere2,
    gemma2,
    gemma3_text,
    granite,
    llama,
    mistral,
    mixtral,
    olmo2,
    olmo3,
    olmoe,
    phi3,
    qwen2,
    qwen3,
    qwen3_moe,
    smollm3,
    stablelm,
)
from model.hf.family import Family
from model.hf.shared import query_scale, shortest_pattern


def families() -> dict[str, Family]:
    """All families by `model_type`, in the order in which a model is offered to them for writing."""
    tables = (
        llama, qwen2, qwen3, mistral, granite, smollm3, gemma2, gemma3_text, olmo2, olmo3, cohere, cohere2, stablelm,
        apertus, bloom, mixtral, qwen3_moe, olmoe, phi3,
    )  # fmt: skip
    return {table.FAMILY.model_type: table.FAMILY for table in tables}


def family_of(model_type: str) -> Family:
    """The family of a `model_type`. Raises FamilyError listing all of them, and the one most like it."""
    known = families()
    if model_type in known:
        return known[model_type]
    near = _nearest(model_type, list(known))
    hint = f"; the nearest by name is {near}, which computes something else" if near else ""
    raise FamilyError(f"model_type {model_type!r} is not supported{hint}. Supported are {', '.join(sorted(known))}")


def read_model(values: Mapping[str, Any], *, origin: str = "config.json") -> tuple[Family, ModelConfig]:
    """The family and model of a config.json.

    Raises FamilyError naming the key for one that is missing, of the wrong type or value, or not understood, and for
    a `model_type` that is not supported.
    """
    config = ConfigFile(values, origin=origin)
    model_type = config.model_type
    try:
        family = family_of(model_type)
    except FamilyError as error:
        raise FamilyError(f"{origin}: {error}") from None
    try:
        cfg = family.read(config)
        # A decoder's fields have bounds, which are checked where they are converted, not where they are made.
        msgspec.convert(msgspec.to_builtins(cfg), ModelConfig)
    except FamilyError:
        raise
    except ValueError as error:  # that of the model itself, or msgspec's, which is one
        raise FamilyError(f"{origin}: {error}") from None
    config.check_all_asked()
    return family, cfg


def write_config(cfg: ModelConfig, preferred: str | None = None) -> tuple[Family, dict[str, Any]]:
    """The first family that has keys for this model, and its config.json without ids of tokens and lengths.

    Asked in the order of `families`, after the preferred one. What is written reads back as the same model, vocabulary
    padding aside. Raises FamilyError naming what the nearest family cannot say.
    """
    wanted = _normal_form(cfg)
    nearest: _Attempt | None = None
    for attempt in _attempts(cfg, wanted, preferred):
        if attempt.values is not None:
            return attempt.family, attempt.values
        if nearest is None or len(attempt.missing) < len(nearest.missing):
            nearest = attempt
    assert nearest is not None, "there are families"
    raise FamilyError(
        f"no family has keys for this model; the nearest is {nearest.family.model_type}, which cannot say "
        f"{'; '.join(nearest.missing)}. Train a form that a family has, or keep the model as a polytune checkpoint"
    )


class _Attempt(NamedTuple):
    """What came of writing a model as one family."""

    family: Family
    values: dict[str, Any] | None
    missing: list[str]
    """What the family cannot say."""


def _attempts(cfg: ModelConfig, wanted: ModelConfig, preferred: str | None) -> Iterator[_Attempt]:
    known = families()
    order = [*([family_of(preferred)] if preferred else []), *known.values()]
    for family in order:
        head = {"architectures": [family.architecture], "model_type": family.model_type}
        try:
            values = head | family.write(cfg)
            found = _normal_form(read_model(values)[1])
        except FamilyError as error:
            yield _Attempt(family, None, [str(error)] * len(wanted.__struct_fields__))
            continue
        missing = [
            f"{name}={value!r}"[:200]
            for name, value in msgspec.structs.asdict(wanted).items()
            if getattr(found, name) != value
        ]
        yield _Attempt(family, None if missing else values, missing)


def _normal_form(cfg: ModelConfig) -> ModelConfig:
    """The config that all configs of the same function have: what nothing depends on set to one value."""
    kinds = shortest_pattern(cfg.kinds)
    sparse = [kind.experts for kind in kinds]
    return msgspec.structs.replace(
        cfg,
        vocab_padding=0,
        layers=kinds,
        experts=cfg.experts if any(sparse) else None,
        mlp_dim=cfg.experts.dim if cfg.experts and all(sparse) else cfg.mlp_dim,
        query_scale=0.0 if query_scale(cfg) == cfg.head_dim**-0.5 else cfg.query_scale,
    )


def _nearest(model_type: str, known: list[str]) -> str | None:
    """The name that this one begins with, or begins, or is spelled almost like."""
    begun = [name for name in known if model_type.startswith(name)]
    if begun:
        return max(begun, key=len)
    longer = [name for name in known if model_type and name.startswith(model_type)]
    return next(iter(longer or difflib.get_close_matches(model_type, known, n=1, cutoff=0.7)), None)
