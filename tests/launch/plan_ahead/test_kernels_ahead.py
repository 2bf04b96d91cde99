"""Kernels, forwards and backwards, compiled for a TPU with none here, for whatever models ask of them."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from toy import AXES

from launch.plan_ahead.costs import count_flops, unknown_kernels
from launch.plan_ahead.hlo import parse_program
from launch.plan_ahead.topology import make_devices, parse_topology
from model.attention import Places
from model.attention_choice import Kernel
from model.attention_packed import attend_packed
from model.config import ComputeConfig
from model.grouped_product import multiply_groups
from model.parallel import MeshConfig, make_mesh
from model.remat import remat

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'polytune[plan]'"
)


@pytest.fixture(autouse=True)
def _without_cache():
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def compile_gradient(topology, mesh, *, name="splash", length=256, width=128, dtype=jnp.bfloat16, **asked):
    """The program of one chip: 4 rows, 8 heads, 4 of keys."""
    kernel = Kernel(name=name, block=128)

    def total(q, k, v, segments_BT, positions_BT):
        places = Places(segments_BT, positions_BT)
        out = attend_packed(q, k, v, places, places, kernel=kernel, scale=0.1, axes=AXES, **asked)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    mesh_in_use = make_mesh(mesh, list(make_devices(parse_topology(topology))))
    with jax.set_mesh(mesh_in_use):

        def array(*shape, dtype, spec):
            return jax.ShapeDtypeStruct(shape, dtype, sharding=jax.NamedSharding(mesh_in_use, spec))

        heads, rows = AXES.spec("batch", None, "heads", None), AXES.spec("batch", None)
        arrays = [array(4, length, n, width, dtype=dtype, spec=heads) for n in (8, 4, 4)]
        places = [array(4, length, dtype=jnp.int32, spec=rows) for _ in range(2)]
        lowered = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*arrays, *places)
        return parse_program(lowered.compile().as_text())


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_splash_compiles_for_every_tpu_and_its_flops_are_known(topology):
    """Two chips for the rows, two for the heads; of 2 x 2 blocks three are visited, by 2, 3 and 4 products."""
    program = compile_gradient(topology, MeshConfig(fsdp=2, tensor=2))
    assert unknown_kernels(program) == []
    assert count_flops(program) == 2 * (2 + 3 + 4) * 3 * (2 * 4 * 128 * 128 * 128)


@pytest.mark.parametrize(
    "asked",
    [
        {"width": 64}, {"width": 80}, {"width": 96}, {"width": 256}, {"length": 300}, {"dtype": jnp.float32},
        {"window": 100}, {"softcap": 50.0}, {"window": 100, "softcap": 50.0, "width": 256},
    ],
    ids=str,
)  # fmt: skip
def test_splash_compiles_for_what_models_ask_of_it(asked):
    program = compile_gradient("v5e:2x2", MeshConfig(fsdp=4), **asked)
    kernels = [v.instruction.name for v in program.visits() if "tpu_custom_call" in v.instruction.attributes]
    assert sorted(name.split("_segmented")[0] for name in kernels) == [
        "splash_mha_dkv", "splash_mha_dq", "splash_mha_fwd"
    ]  # fmt: skip


def test_blockwise_compiles_for_what_splash_has_not():
    """Its products are counted from the program: 2 forwards and 5 backwards, of three pairs of blocks."""
    program = compile_gradient("v5e:2x2", MeshConfig(fsdp=4), name="blockwise", alibi=True, softcap=50.0, window=200)
    assert program.unknown_loops() == []
    assert count_flops(program) == 2 * (2 + 5) * 3 * (8 * 128 * 128 * 128)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("topology", "dim", "width"),
    [("v5e:2x2", 2048, 768), ("v5p:2x2x1", 2048, 768), ("v6e:2x2", 2048, 768), ("v5e:2x2", 2880, 1408)],
)
def test_no_product_of_experts_is_every_row_with_every_matrix(topology, dim, width, dtype):
    """`jax.lax.ragged_dot` brings a gradient for its matrices that compiles to just that: 32 times the work here."""
    rows, experts = 2048, 32

    def gradient(x_PD, w_EDF, sizes_E, g_PF):
        y_PF, pull = jax.vjp(lambda x, w: multiply_groups(x, w, sizes_E), x_PD, w_EDF)
        return y_PF, *pull(g_PF)

    mesh_in_use = make_mesh(MeshConfig(fsdp=4), list(make_devices(parse_topology(topology))))
    shapes = (rows, dim), (experts, dim, width), (experts,), (rows, width)
    with jax.set_mesh(mesh_in_use):
        whole = jax.NamedSharding(mesh_in_use, jax.P())
        arrays = [jax.ShapeDtypeStruct(s, jnp.int32 if len(s) == 1 else dtype, sharding=whole) for s in shapes]
        split = jax.shard_map(gradient, in_specs=(jax.P(),) * 4, out_specs=(jax.P(),) * 3, check_vma=False)
        program = parse_program(jax.jit(split).lower(*arrays).compile().as_text())
    assert unknown_kernels(program) == []
    assert count_flops(program) == 3 * 2 * rows * dim * width


@pytest.mark.parametrize(("policy", "forward"), [("none", 1), ("attention", 1), ("block", 2)])
def test_where_attention_is_kept_the_forward_kernel_of_a_layer_runs_once(policy, forward):
    """Of scanned layers, so that the compiler cannot take the second run for the first; rows are on one chip each."""

    def run_layer(_stack, x_BTNH):
        ids = jnp.ones(x_BTNH.shape[:2], jnp.int32)
        places = Places(ids, jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape))
        kernel = Kernel(name="splash", block=128)
        k, v = (jax.reshard(by * x_BTNH, AXES.spec("batch", None, "heads", None)) for by in (2, 3))
        return attend_packed(x_BTNH, k, v, places, places, kernel=kernel, scale=0.1, axes=AXES)

    def total(x_BTNH):
        run = remat(run_layer, ComputeConfig(remat=policy))
        last, _ = jax.lax.scan(lambda x_BTNH, _: (jnp.sin(run(None, x_BTNH)), None), x_BTNH, length=3)
        return jnp.sum(last.astype(jnp.float32))

    mesh = make_mesh(MeshConfig(fsdp=4), list(make_devices(parse_topology("v5e:2x2"))))
    with jax.set_mesh(mesh):
        spec = AXES.spec("batch", "length", "heads", None)
        x_BTNH = jax.ShapeDtypeStruct((4, 256, 8, 128), jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec))
        program = parse_program(jax.jit(jax.grad(total)).lower(x_BTNH).compile().as_text())
    kernels = [v for v in program.visits() if v.instruction.name.startswith("splash_mha_fwd")]
    assert [v.times for v in kernels] == [3] * forward
