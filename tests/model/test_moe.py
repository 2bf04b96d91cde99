"""Experts against a loop over tokens, their gradients against every expert computing every token, on any mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import AXES, TOLERANCE, TOY, assert_close_trees, copy_to_host

from model.config import ComputeConfig, ExpertsConfig, LayerKind
from model.moe import Experts, RouterSums
from model.parallel import ANSWERING, UNSHARDED, MeshConfig, make_mesh
from model.transformer import apply_cached, apply_routed, empty_cache, init

EIGHT = ExpertsConfig(num_experts=8, per_token=3, dim=12)
MIXTURE = msgspec.structs.replace(TOY, experts=EIGHT, layers=(LayerKind(experts=True),))
ALTERNATING = msgspec.structs.replace(MIXTURE, num_layers=4, layers=(LayerKind(), LayerKind(experts=True)))
CONFIGS = {
    "normalized": MIXTURE,
    "not normalized": msgspec.structs.replace(MIXTURE, experts=msgspec.structs.replace(EIGHT, normalize=False)),
    "top 1": msgspec.structs.replace(MIXTURE, experts=msgspec.structs.replace(EIGHT, per_token=1)),
    "all of five": msgspec.structs.replace(MIXTURE, experts=ExpertsConfig(num_experts=5, per_token=5, dim=7)),
    "not gated": msgspec.structs.replace(MIXTURE, gated=False),
}
MESHES = [(8, 1, 1), (4, 1, 2), (2, 2, 2), (1, 8, 1), (1, 4, 2), (2, 1, 2, 2), (1, 4, 1, 2)]
"""Of (fsdp, expert, tensor) and, if it is given, sequence."""

ROWS, LENGTH = 8, 6
IS_REAL = np.arange(LENGTH)[None] < np.array([6, 6, 5, 1, 6, 0, 6, 4])[:, None]


def enter(shape):
    """A mesh of this shape, in use."""
    sizes = dict(zip(("fsdp", "expert", "tensor", "sequence"), shape, strict=False))
    return jax.set_mesh(make_mesh(MeshConfig(**sizes), jax.devices()[: math.prod(shape)]))


def draw_params(cfg, seed=0):
    """Experts' parameters, about as large as what they meet, so that probabilities are far from equal."""
    rng = np.random.default_rng(seed)
    num, width = cfg.experts.num_experts, cfg.experts.dim
    shapes = {"router": (cfg.dim, num), "up": (num, cfg.dim, width), "down": (num, width, cfg.dim)}
    if cfg.gated:
        shapes["gate"] = shapes["up"]
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def draw_tokens(seed=1):
    return np.random.default_rng(seed).normal(size=(ROWS, LENGTH, MIXTURE.dim)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def run(cfg, axes, params, x_BTD, is_real_BT):
    return Experts(cfg, axes).apply({"params": params}, x_BTD, is_real_BT)


def silu(x):
    return x / (1 + np.exp(-x))


def loop(cfg, params, x_BTD, is_real_BT):
    """Token by token and expert by expert, in float64: outputs and `RouterSums`."""
    num, top = cfg.experts.num_experts, cfg.experts.per_token
    params = {name: leaf.astype(np.float64) for name, leaf in params.items()}
    out_BTD, chosen_E, probability_E, log_z_squared = np.zeros(x_BTD.shape), np.zeros(num), np.zeros(num), 0.0
    for at in zip(*np.nonzero(is_real_BT), strict=True):
        x_D = x_BTD[at].astype(np.float64)
        logits_E = np.array([sum(x_D[d] * params["router"][d, e] for d in range(len(x_D))) for e in range(num)])
        share_E = np.exp(logits_E) / np.exp(logits_E).sum()
        best = sorted(range(num), key=lambda e, share_E=share_E: -share_E[e])[:top]
        total = sum(share_E[e] for e in best) if cfg.experts.normalize else 1.0
        for e in best:
            up_F = x_D @ params["up"][e]
            hidden_F = silu(x_D @ params["gate"][e]) * up_F if cfg.gated else silu(up_F)
            out_BTD[at] += share_E[e] / total * (hidden_F @ params["down"][e])
            chosen_E[e] += 1
        probability_E += share_E
        log_z_squared += np.log(np.exp(logits_E).sum()) ** 2
    return out_BTD, RouterSums(chosen_E, probability_E, log_z_squared, is_real_BT.sum())


def dense(cfg, params, x_BTD, is_real_BT):
    """Every expert computes every token; those not chosen get weight zero."""
    logits_BTE = jnp.einsum("BTD,DE->BTE", x_BTD, params["router"])
    share_BTE = jax.nn.softmax(logits_BTE, axis=-1)
    kth_BT1 = jnp.sort(share_BTE, axis=-1)[..., -cfg.experts.per_token][..., None]
    weight_BTE = jnp.where((share_BTE >= kth_BT1) & is_real_BT[..., None], share_BTE, 0.0)
    if cfg.experts.normalize:
        weight_BTE /= jnp.maximum(weight_BTE.sum(axis=-1, keepdims=True), 1e-30)
    up_BTEF = jnp.einsum("BTD,EDF->BTEF", x_BTD, params["up"])
    gate_BTEF = jax.nn.silu(jnp.einsum("BTD,EDF->BTEF", x_BTD, params["gate"]) if cfg.gated else up_BTEF)
    hidden_BTEF = gate_BTEF * up_BTEF if cfg.gated else gate_BTEF
    return jnp.einsum("BTEF,EFD,BTE->BTD", hidden_BTEF, params["down"], weight_BTE)


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS.keys())
def test_outputs_and_sums_equal_a_loop_over_tokens_and_experts(cfg, one_device):
    params, x_BTD = draw_params(cfg), draw_tokens()
    assert_close_trees(run(cfg, AXES, params, x_BTD, IS_REAL), loop(cfg, params, x_BTD, IS_REAL))


@pytest.mark.parametrize("cfg", CONFIGS.values(), ids=CONFIGS.keys())
def test_gradients_equal_those_of_every_expert_computing_every_token(cfg, one_device):
    """For tokens, router and experts; with a random cotangent, since a sum of ones hides mistakes."""
    params, x_BTD = draw_params(cfg), draw_tokens()
    g_BTD = draw_tokens(seed=2) / IS_REAL.sum(dtype=np.float32)

    def total(forward):
        return jax.jit(jax.grad(lambda params, x_BTD: jnp.sum(forward(params, x_BTD) * g_BTD), argnums=(0, 1)))

    given = total(lambda params, x_BTD: run(cfg, AXES, params, x_BTD, IS_REAL)[0])(params, x_BTD)
    wanted = total(lambda params, x_BTD: dense(cfg, params, x_BTD, IS_REAL))(params, x_BTD)
    assert all(np.any(leaf) for name, leaf in wanted[0].items() if name != "router" or cfg.experts.per_token > 1)
    assert_close_trees(given, wanted)


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2), (1, 8, 1)], ids=str)
def test_no_token_is_dropped_when_all_choose_the_same_expert(mesh):
    """An expert with room for its fair share alone would serve one token in eight."""
    cfg = CONFIGS["top 1"]
    params, x_BTD = draw_params(cfg), np.abs(draw_tokens())
    params["router"][:, 6] += 5
    wanted_BTD, wanted = loop(cfg, params, x_BTD, IS_REAL)
    with enter(mesh):
        placed = jax.device_put((x_BTD, IS_REAL), (AXES.spec("batch", None, None), AXES.spec("batch", None)))
        out_BTD, sums = copy_to_host(run(cfg, AXES, place(params, AXES), *placed))
    np.testing.assert_array_equal(sums.chosen_E, IS_REAL.sum() * (np.arange(8) == 6))
    assert wanted.chosen_E[6] == IS_REAL.sum()
    assert np.all(np.any(out_BTD != 0, axis=-1) == IS_REAL)
    np.testing.assert_allclose(out_BTD, wanted_BTD, **TOLERANCE)


def place(params, axes):
    """Experts' parameters on the mesh in use, as `init` would place them."""
    specs = {"router": axes.spec("embed", None), "down": axes.spec("experts", "mlp", "embed")}
    wide = axes.spec("experts", "embed", "mlp")
    return {name: jax.device_put(leaf, specs.get(name, wide)) for name, leaf in params.items()}


def test_padding_is_neither_counted_nor_served(one_device):
    params, x_BTD = draw_params(MIXTURE), draw_tokens()
    out_BTD, sums = copy_to_host(run(MIXTURE, AXES, params, x_BTD, IS_REAL))
    assert sums.tokens == IS_REAL.sum() and sums.chosen_E.sum() == 3 * IS_REAL.sum()
    assert not np.any(out_BTD[~IS_REAL])
    other_BTD = np.where(IS_REAL[..., None], x_BTD, 7.0).astype(np.float32)
    jax.tree.map(np.testing.assert_array_equal, run(MIXTURE, AXES, params, other_BTD, IS_REAL), (out_BTD, sums))


def test_routing_is_float32_though_activations_are_bfloat16(one_device):
    """Experts 2 and 5 differ by a thousandth: in bfloat16 they would tie, and 2 would always win."""
    cfg = CONFIGS["top 1"]
    params, x_BTD = draw_params(cfg), jnp.ones((ROWS, LENGTH, cfg.dim), jnp.bfloat16)
    params["router"][:] = 0
    params["router"][:, 2], params["router"][:, 5] = 1.0, 1.001
    out_BTD, sums = run(cfg, AXES, params, x_BTD, np.ones((ROWS, LENGTH), bool))
    np.testing.assert_array_equal(sums.chosen_E, ROWS * LENGTH * (np.arange(8) == 5))
    assert out_BTD.dtype == jnp.bfloat16 and {leaf.dtype for leaf in sums} == {np.dtype("float32")}
    log_z = np.log(6 + np.exp(16.0) + np.exp(16.016))
    np.testing.assert_allclose(sums.log_z_squared, ROWS * LENGTH * log_z**2, rtol=1e-5)


def test_the_router_s_product_is_not_left_to_an_accelerator_s_default(one_device):
    """TPUs and GPUs round float32 operands to fewer bits unless told not to; a CPU cannot show it."""
    params, x_BTD = draw_params(MIXTURE), jnp.asarray(draw_tokens())
    program = str(jax.make_jaxpr(functools.partial(run, MIXTURE, AXES))(params, x_BTD, IS_REAL))
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 1


def test_an_activation_with_parameters_is_refused_by_name(one_device):
    cfg = msgspec.structs.replace(MIXTURE, activation="xielu")
    with pytest.raises(ValueError, match="experts with activation: xielu are not supported; use one"):
        Experts(cfg, AXES).init(jax.random.key(0), jnp.asarray(draw_tokens()), jnp.asarray(IS_REAL))


SEGMENTS = np.where(IS_REAL, 1 + (np.arange(LENGTH)[None] >= 3), 0).astype(np.int32)
POSITIONS = np.where(IS_REAL, np.arange(LENGTH)[None] % 3, 0).astype(np.int32)
TOKENS = np.random.default_rng(3).integers(3, TOY.vocab_size, (ROWS, LENGTH)).astype(np.int32)


def run_decoder(cfg, params, **how):
    """Logits at real tokens, router sums, and the gradient of a function of both."""

    def total(params):
        logits_BTV, sums = apply_routed(cfg, AXES, params, *fields, compute=ComputeConfig(**how))
        weight_BT = fields[1].astype(jnp.float32)
        of_sums = jnp.sum(jnp.square(sums.probability_E / sums.tokens)) + sums.log_z_squared / sums.tokens
        of_logits = jnp.sum(jnp.sin(logits_BTV) * weight_BT[..., None]) / (sums.tokens * TOY.vocab_size)
        return of_logits + of_sums, (logits_BTV, sums)

    fields = [jax.device_put(field, AXES.spec("batch", None)) for field in (TOKENS, SEGMENTS, POSITIONS)]
    gradient, (logits_BTV, sums) = jax.jit(jax.grad(total, has_aux=True))(params)
    return copy_to_host((np.asarray(logits_BTV)[IS_REAL], sums, gradient))


def place_as_initialized(cfg, params):
    like = jax.eval_shape(functools.partial(init, cfg, AXES), jax.random.key(0))
    return jax.tree.map(lambda leaf, other: jax.device_put(leaf, other.sharding.spec), params, like)


@pytest.fixture(scope="module")
def decoder_params():
    """Of layers without and with experts in turn."""
    with enter((1, 1, 1)):
        return copy_to_host(jax.jit(init, static_argnums=(0, 1))(ALTERNATING, AXES, jax.random.key(0)))


@pytest.fixture(scope="module")
def on_one_device(decoder_params):
    with enter((1, 1, 1)):
        return run_decoder(ALTERNATING, place_as_initialized(ALTERNATING, decoder_params))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_no_mesh_changes_a_value_or_a_gradient(mesh, on_one_device, decoder_params):
    with enter(mesh):
        assert_close_trees(run_decoder(ALTERNATING, place_as_initialized(ALTERNATING, decoder_params)), on_one_device)


def test_remat_and_unrolling_change_no_value_or_gradient(on_one_device, decoder_params):
    with enter((2, 2, 2)):
        params = place_as_initialized(ALTERNATING, decoder_params)
        assert_close_trees(run_decoder(ALTERNATING, params, remat="block", scan_unroll=2), on_one_device)


def test_fresh_parameters_are_the_same_on_every_mesh():
    """`init` runs one token, which no mesh divides."""
    made = []
    for mesh in ((1, 1, 1), (2, 2, 2)):
        with enter(mesh):
            made.append(copy_to_host(jax.jit(init, static_argnums=(0, 1))(MIXTURE, AXES, jax.random.key(0))))
    assert_close_trees(*made)
    experts = made[0]["layers"]["0"]["experts"]
    assert {name: leaf.shape for name, leaf in experts.items()} == {
        "router": (2, 16, 8), "gate": (2, 8, 16, 12), "up": (2, 8, 16, 12), "down": (2, 8, 12, 16)
    }  # fmt: skip


def test_a_packed_segment_is_routed_as_it_is_alone(decoder_params):
    forward = jax.jit(apply_routed, static_argnums=(0, 1))
    with enter((1, 1, 1)):
        packed_BTV, packed = forward(ALTERNATING, AXES, decoder_params, TOKENS, SEGMENTS, POSITIONS)
        totals = []
        for part in (slice(0, 3), slice(3, 6)):
            alone = [field[:, part] for field in (TOKENS, SEGMENTS, POSITIONS)]
            alone_BTV, sums = forward(ALTERNATING, AXES, decoder_params, *alone)
            is_real = IS_REAL[:, part]
            np.testing.assert_allclose(
                np.asarray(alone_BTV)[is_real], np.asarray(packed_BTV[:, part])[is_real], **TOLERANCE
            )
            totals.append(sums)
    assert_close_trees(packed, jax.tree.map(jnp.add, *totals))


@pytest.mark.parametrize("mesh", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_decoding_with_a_cache_equals_the_whole_forward_pass(mesh, decoder_params):
    """A chunk of two tokens, then one after the other."""
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    with enter(mesh):
        params = place_as_initialized(ALTERNATING, decoder_params)
        put = functools.partial(jax.device_put, device=ANSWERING.spec("batch", None))
        wanted_BTV, _ = jax.jit(apply_routed, static_argnums=(0, 1))(
            ALTERNATING, ANSWERING, params, put(TOKENS), put(np.ones_like(TOKENS)), put(positions)
        )
        cache = empty_cache(ALTERNATING, ANSWERING, batch=ROWS, slots=LENGTH, compute=ComputeConfig())
        decode = jax.jit(apply_cached, static_argnums=(0, 1))
        for part in (slice(0, 2), slice(2, 3), slice(3, 4)):
            logits_BTV, cache = decode(
                ALTERNATING, ANSWERING, params, put(TOKENS[:, part]), put(positions[:, part]), cache
            )
            np.testing.assert_allclose(logits_BTV, wanted_BTV[:, part], **TOLERANCE)


def test_rules_that_split_nothing_leave_every_device_the_whole(decoder_params):
    """As when one row is scored on a mesh of many devices."""
    params, x_BTD = draw_params(MIXTURE), draw_tokens()[:1]
    with enter((2, 2, 2)):
        out_BTD, sums = run(MIXTURE, UNSHARDED, params, x_BTD, IS_REAL[:1])
    assert_close_trees((out_BTD, sums), loop(MIXTURE, params, x_BTD, IS_REAL[:1]))
