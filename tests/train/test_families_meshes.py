"""Every model family trains under every preset that fits it, and to the same gradient as on one device."""

import functools
import json
from pathlib import Path

import jax
import msgspec
import pytest
from toy import (
    AXES,
    LANGUAGES,
    TOY,
    assert_close_trees,
    copy_to_host,
    lay_out,
    make_examples,
    most_trained,
    pack_pairs,
)

from model.config import ComputeConfig, ModelConfig
from model.hf.registry import families, read_model
from model.parallel import MeshConfig, make_mesh
from model.presets import resolve_mesh
from model.transformer import init
from train.hosts import put_batch
from train.step import StepSpec, mean_gradient

FOLDERS = Path(__file__).resolve().parents[1] / "golden" / "families"
SIZES = {name: getattr(TOY, name) for name in ("vocab_size", "dim", "num_heads", "num_kv_heads", "mlp_dim")}
BATCH = lay_out(pack_pairs(make_examples(32)))
ROWS, ROW_LENGTH = BATCH.tokens_BT.shape


@functools.cache
def models() -> dict[str, ModelConfig]:
    """One of each family as its folder describes it: two layers, of unlike kinds if it has them, that a mesh divides.

    More layers prove no more: they only make the rounding of one device's sums grow beyond the tolerance.
    """
    found = {}
    for path in sorted(FOLDERS.iterdir()):
        family, cfg = read_model(json.loads((path / "config.json").read_text()))
        experts = cfg.experts and msgspec.structs.replace(cfg.experts, num_experts=4, dim=8)
        kinds = tuple(dict.fromkeys(cfg.kinds))[:2]
        changes = {**SIZES, "num_layers": 2, "layers": kinds, "experts": experts}
        found.setdefault(family.model_type, msgspec.structs.replace(cfg, **changes))
    return found


def gradient_of(cfg, config, devices):
    spec = StepSpec(
        model=cfg, axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES),
        most_trained=-(-most_trained(BATCH) // 8) * 8,
    )  # fmt: skip
    resolved = resolve_mesh(config, cfg, devices=devices, rows=ROWS, row_length=ROW_LENGTH)
    mesh = make_mesh(resolved, jax.devices()[:devices])
    with jax.set_mesh(mesh):
        params = jax.jit(init, static_argnums=(0, 1))(cfg, AXES, jax.random.key(0))
        batch = put_batch(BATCH, AXES.spec("batch", None))
        gradient = copy_to_host(jax.jit(functools.partial(mean_gradient, spec))(params, batch))
        return gradient, {name for name, size in mesh.shape.items() if size > 1}


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(families()))
def test_a_family_trains_under_every_preset_as_on_one_device(family):
    cfg = models()[family]
    wanted, _ = gradient_of(cfg, MeshConfig(), 1)
    axis_of = {"fsdp": "fsdp", "fsdp_tp": "tensor", "long": "sequence"} | ({"moe": "expert"} if cfg.experts else {})
    for preset, axis in axis_of.items():
        given, used = gradient_of(cfg, MeshConfig(preset=preset, data=2), 8)
        assert used - {"fsdp"} == {"data", axis} - {"fsdp"}
        assert_close_trees(given, wanted)
