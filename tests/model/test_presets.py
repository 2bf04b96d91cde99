"""Which sizes a preset gives, and what it says where none works."""

import jax
import msgspec
import pytest
from toy import TOY

from model.config import ExpertsConfig, LayerKind
from model.parallel import MESH_AXES, AxisRules, MeshConfig, make_mesh
from model.presets import resolve_mesh

MIXTURE = msgspec.structs.replace(
    TOY, experts=ExpertsConfig(num_experts=12, per_token=2, dim=16), layers=(LayerKind(experts=True),)
)


def sizes_of(config, cfg=TOY, *, devices=8, rows=8, row_length=16, axes=AxisRules()):  # noqa: B008
    resolved = resolve_mesh(config, cfg, devices=devices, rows=rows, row_length=row_length, axes=axes)
    mesh = make_mesh(resolved, jax.devices()[:devices])
    return {name: size for name, size in mesh.shape.items() if size > 1}


@pytest.mark.parametrize(
    ("config", "rows", "wanted"),
    [
        (MeshConfig(preset="fsdp"), 8, {"fsdp": 8}),
        (MeshConfig(preset="fsdp", data=2), 8, {"data": 2, "fsdp": 4}),
        (MeshConfig(preset="fsdp_tp"), 8, {"fsdp": 4, "tensor": 2}),
        (MeshConfig(preset="fsdp_tp"), 2, {"fsdp": 2, "tensor": 4}),
        (MeshConfig(preset="fsdp_tp", tensor=4), 8, {"fsdp": 2, "tensor": 4}),
        (MeshConfig(preset="long"), 8, {"fsdp": 4, "sequence": 2}),
        (MeshConfig(preset="long"), 1, {"sequence": 8}),
        (MeshConfig(preset="long", tensor=2), 1, {"sequence": 4, "tensor": 2}),
        (MeshConfig(preset="long", data=2), 2, {"data": 2, "sequence": 4}),
        (MeshConfig(preset="long", fsdp=2), 8, {"fsdp": 2, "sequence": 4}),
    ],
)
def test_presets_use_as_few_devices_beside_the_rows_as_the_rows_allow(config, rows, wanted):
    assert sizes_of(config, rows=rows) == wanted


def test_experts_are_spread_as_far_as_they_divide():
    assert sizes_of(MeshConfig(preset="moe"), MIXTURE) == {"fsdp": 2, "expert": 4}


def test_a_config_without_a_preset_is_left_alone():
    config = MeshConfig(fsdp=2, tensor=4)
    assert resolve_mesh(config, TOY, devices=8, rows=1, row_length=1) is config


@pytest.mark.parametrize(
    ("preset", "cfg", "changes", "message"),
    [
        ("moe", TOY, {}, "no layer of the model has experts; use mesh.preset=fsdp"),
        ("moe", MIXTURE, {"devices": 7}, "must divide the 7 devices .*num_experts=12; use mesh.preset=fsdp"),
        ("fsdp_tp", TOY, {"devices": 3}, "2, 4 or 8 devices on the tensor axis.*3 devices.*model.num_kv_heads=4"),
        (
            "fsdp_tp",
            TOY,
            {"rows": 3},
            r"can have 4 on the tensor axis at most; the other 2 ways do not divide 3 rows .*use 2 or 4",
        ),
        (
            "long",
            TOY,
            {"row_length": 15},
            r"must divide the 8 devices it may use and data.packing.row_length=15; let data.*row_length be 14 or 16",
        ),
    ],
)
def test_a_preset_that_cannot_be_had_says_which_numbers_would_do(preset, cfg, changes, message):
    with pytest.raises(ValueError, match=message):
        sizes_of(MeshConfig(preset=preset), cfg, **changes)


def test_a_vocabulary_that_two_devices_cannot_share_is_named_with_those_that_they_can():
    """It was found only when the model was built, after all data had been tokenised."""
    odd = msgspec.structs.replace(TOY, vocab_size=33)
    message = r"and model\.num_kv_heads=4, .*vocab_size .*=33; let model\.vocab_size .* be 32 or 34; or use mesh"
    with pytest.raises(ValueError, match=message):
        sizes_of(MeshConfig(preset="fsdp_tp"), odd)
    padded = msgspec.structs.replace(odd, vocab_padding=1)
    assert sizes_of(MeshConfig(preset="fsdp_tp"), padded) == {"fsdp": 4, "tensor": 2}
    assert sizes_of(MeshConfig(preset="fsdp_tp"), odd, axes=AxisRules(vocab=None)) == {"fsdp": 4, "tensor": 2}


def test_a_vocabulary_that_four_devices_cannot_share_is_shared_by_two():
    """Two rows ask for four ways of `tensor`; the vocabulary allows two, and then the rows are too few."""
    even = msgspec.structs.replace(TOY, vocab_size=34)
    with pytest.raises(ValueError, match=r"can have 2 on the tensor axis at most; the other 4 ways do not divide 2 "):
        sizes_of(MeshConfig(preset="fsdp_tp"), even, rows=2)
    assert sizes_of(MeshConfig(preset="fsdp_tp"), even, rows=4) == {"fsdp": 4, "tensor": 2}


@pytest.mark.parametrize("config", [MeshConfig(preset="long", tensor=16), MeshConfig(preset="fsdp_tp", data=3)])
def test_sizes_beside_a_preset_that_do_not_divide_the_devices_are_named(config):
    with pytest.raises(ValueError, match=r"with mesh\.(tensor=16|data=3): their product .* 8 devices present"):
        sizes_of(config)


def test_every_preset_is_the_name_of_an_axis_of_the_mesh():
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"preset": "ddp"}, MeshConfig)
    assert MESH_AXES == ("data", "fsdp", "expert", "sequence", "tensor")
