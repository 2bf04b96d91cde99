import jax
import msgspec
import pytest
from jax.sharding import PartitionSpec as P
from toy import mesh_of

from model.parallel import AxisRules, MeshConfig, check_all_shard, check_divisible, make_mesh


@pytest.mark.parametrize(
    ("fsdp", "tensor", "devices", "wanted"),
    [(-1, 1, 8, (8, 1)), (-1, 4, 8, (2, 4)), (4, 2, 8, (4, 2)), (-1, 1, 1, (1, 1)), (2, 1, 2, (2, 1))],
)
def test_mesh_covers_the_devices(fsdp, tensor, devices, wanted):
    mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), jax.devices()[:devices])
    assert (mesh.shape["fsdp"], mesh.shape["tensor"]) == wanted
    assert all(kind == jax.sharding.AxisType.Explicit for kind in mesh.axis_types)


@pytest.mark.parametrize(("fsdp", "tensor"), [(3, 1), (-1, 3), (8, 2), (0, 1), (4, 1), (-1, 16)])
def test_a_mesh_that_leaves_devices_out_is_refused_with_what_would_fit(fsdp, tensor):
    with pytest.raises(
        ValueError,
        match=rf"data=1 fsdp={fsdp} expert=1 sequence=1 tensor={tensor} .* 8 devices present; make their product 8",
    ):
        make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor))


def test_rules_map_logical_axes_to_mesh_axes():
    rules = AxisRules()
    assert rules.spec("embed", "heads", None) == P("fsdp", "tensor", None)
    assert rules.spec("batch", None, "vocab") == P(("data", "fsdp", "expert"), None, "tensor")
    assert AxisRules(mlp=None).spec("embed", "mlp") == P("fsdp", None)
    with pytest.raises(AttributeError):
        rules.spec("widht")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"mlp": "fsdp"}, "mesh axis fsdp would shard embed and mlp, dimensions of the same arrays"),
        ({"vocab": ["tensor", "sequence"]}, "mesh axis sequence would shard length and vocab"),
        ({"batch": ["data", "data"]}, "mesh axis data would shard batch twice"),
        ({"embed": "fdsp"}, "axes.embed names mesh axis 'fdsp'; the axes are data, fsdp, expert, sequence, tensor"),
    ],
    ids=str,
)
def test_rules_that_collide_or_name_no_axis_are_refused_before_anything_is_traced(rules, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(rules, AxisRules)


def test_sizes_a_mesh_does_not_divide_are_named_with_ones_that_it_does():
    mesh = mesh_of((2, 4))
    check_divisible({"model.dim": (6, "fsdp"), "model.mlp_dim": (12, "tensor"), "rope": (7, None)}, mesh)
    with pytest.raises(ValueError, match=r"model.mlp_dim=10 is not divisible by mesh axis tensor=4; use 8 or 12"):
        check_divisible({"model.mlp_dim": (10, "tensor")}, mesh)
    with pytest.raises(ValueError, match=r"model.num_kv_heads=2 .* use 4"):
        check_divisible({"model.num_kv_heads": (2, "tensor")}, mesh)


def test_devices_that_would_all_do_the_same_work_are_refused():
    """Rules that leave an axis out train rightly, and as slowly as on a part of the machine."""
    check_all_shard(AxisRules(length=None), mesh_of((2, 4)))
    with pytest.raises(
        ValueError, match=r"mesh axis sequence=4 shards nothing .*use mesh.sequence=1, or name sequence"
    ):
        check_all_shard(AxisRules(length=None), mesh_of(MeshConfig(fsdp=2, sequence=4)))
