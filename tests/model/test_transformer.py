import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import numpy_decoder
import pytest
from toy import AXES, MESHES, ROW_LENGTH, TOLERANCE, TOY, assert_equal_trees, copy_to_host, mesh_of, packed_mask

from model.config import ComputeConfig, LayerKind, RopeConfig
from model.parallel import UNSHARDED
from model.transformer import abstract, apply, count_parameters, init

UNTIED = msgspec.structs.replace(
    TOY, tied_head=False, num_heads=4, num_kv_heads=2, head_dim=6, layers=(LayerKind(rope=RopeConfig(base=100.0)),)
)
SEGMENTS = np.array([[1] * 5 + [2] * 4 + [3] + [0] * 6, [1] * 16], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5], list(range(16))], np.int32)
TOKENS = (
    np.random.default_rng(0)
    .permuted(np.tile(np.arange(TOY.vocab_size), (2, 1)), axis=1)[:, :ROW_LENGTH]
    .astype(np.int32)
)
BFLOAT16_BOUND = 0.05
"""Largest difference of a logit, whose spread is about one, after two layers in eight bits of mantissa."""


@pytest.fixture(scope="module")
def forward():
    """The jitted forward pass, shared so that it is compiled once."""
    return jax.jit(apply, static_argnums=(0, 1), static_argnames="compute")


def noisy(params):
    """The parameters with norm scales that are not all one, so that their place in the formula shows."""
    rng = np.random.default_rng(1)

    def shake(path, leaf):
        return leaf * rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) if path[-1].key == "scale" else leaf

    return jax.tree_util.tree_map_with_path(shake, copy_to_host(params))


@pytest.mark.parametrize("cfg", [TOY, UNTIED], ids=["tied", "untied"])
def test_logits_equal_a_numpy_decoder_s(cfg, toy_params, forward, one_device):
    params = noisy(toy_params if cfg is TOY else init(cfg, AXES, jax.random.key(1)))
    logits = forward(cfg, AXES, params, TOKENS, SEGMENTS, POSITIONS)
    wanted = [numpy_decoder.decode(cfg, params, *row) for row in zip(TOKENS, SEGMENTS, POSITIONS, strict=True)]
    np.testing.assert_allclose(logits, wanted, **TOLERANCE)
    assert logits.dtype == jnp.float32


def test_a_packed_segment_gets_the_logits_it_gets_alone(toy_params, forward, one_device):
    packed = forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS)[0]
    for first, length in ((0, 5), (5, 4), (9, 1)):
        alone = np.zeros((2, ROW_LENGTH), np.int32)
        segment, position = alone.copy(), alone.copy()
        alone[:, :length], segment[:, :length] = TOKENS[0, first : first + length], 1
        position[:, :length] = np.arange(length)
        logits = forward(TOY, AXES, toy_params, alone, segment, position)[0, :length]
        np.testing.assert_allclose(logits, packed[first : first + length], **TOLERANCE)


def test_logits_at_chosen_positions_are_those_of_the_whole(toy_params, forward, one_device):
    at_BK = jnp.array([[3, 0, 15], [7, 7, 1]])
    chosen = forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS, at_BK=at_BK)
    whole = np.asarray(forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS))
    np.testing.assert_allclose(chosen, np.take_along_axis(whole, np.asarray(at_BK)[..., None], axis=1), **TOLERANCE)


@pytest.mark.parametrize("how", [{}, {"remat": "block", "scan_unroll": 2}], ids=["plain", "remat"])
def test_no_position_feels_its_future_or_another_segment(how, one_device):
    """The gradient of a position's output for a position's input is zero exactly where the mask forbids it.

    All tokens of a row differ and the head is not tied, so the gradient for a row of the embedding is that
    for the one position that reads it.
    """
    params = init(UNTIED, UNSHARDED, jax.random.key(0))
    run = functools.partial(apply, UNTIED, UNSHARDED, compute=ComputeConfig(**how))
    cotangent_V = jnp.asarray(np.random.default_rng(2).normal(size=UNTIED.vocab_size), jnp.float32)

    @jax.jit
    def jacobian(weight_VD, tokens_BT, segments_BT, positions_BT):
        def outputs(weight_VD):
            logits_BTV = run({**params, "embedding": {"weight": weight_VD}}, tokens_BT, segments_BT, positions_BT)
            return logits_BTV[0] @ cotangent_V

        return jax.jacrev(outputs)(weight_VD)

    for row in range(2):
        fields = (x_BT[row : row + 1] for x_BT in (TOKENS, SEGMENTS, POSITIONS))
        gradient_TVD = np.asarray(jacobian(params["embedding"]["weight"], *fields))
        felt_TS = np.any(gradient_TVD[:, TOKENS[row]] != 0, axis=-1)
        np.testing.assert_array_equal(
            felt_TS, packed_mask(jnp.asarray(SEGMENTS[row : row + 1]), jnp.asarray(POSITIONS[row : row + 1]))[0]
        )
        unread = sorted(set(range(UNTIED.vocab_size)) - set(TOKENS[row].tolist()))
        assert not np.any(gradient_TVD[:, unread])


def test_contents_of_padding_and_other_rows_change_no_bit(toy_params, forward, one_device):
    tokens = TOKENS.copy()
    tokens[0, 10:], tokens[1] = 1, 7
    before = forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS)
    after = forward(TOY, AXES, toy_params, tokens, SEGMENTS, POSITIONS)
    np.testing.assert_array_equal(before[0, :10], after[0, :10])
    assert np.any(before[1] != after[1])


def test_bfloat16_compute_stays_near_float32(toy_params, forward, one_device):
    exact = forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS)
    rough = forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS, compute=ComputeConfig(dtype="bfloat16"))
    assert rough.dtype == jnp.float32
    difference = float(jnp.max(jnp.abs(exact - rough)))
    assert 0 < difference < BFLOAT16_BOUND


def test_parameters_are_float32_and_the_same_on_every_mesh(toy_params):
    for shape in MESHES[1:]:
        with jax.set_mesh(mesh_of(shape)):
            assert_equal_trees(
                copy_to_host(jax.jit(init, static_argnums=(0, 1))(TOY, AXES, jax.random.key(0))), toy_params
            )
    assert {leaf.dtype for leaf in jax.tree.leaves(toy_params)} == {np.dtype("float32")}


def test_abstract_parameters_are_init_s_without_the_arrays(toy_params):
    with jax.set_mesh(mesh_of((4, 2))):
        promised = abstract(TOY, AXES)
        made = jax.jit(init, static_argnums=(0, 1))(TOY, AXES, jax.random.key(0))
    jax.tree.map(
        lambda a, b: (a.shape, a.dtype, a.sharding.spec) == (b.shape, b.dtype, b.sharding.spec) or 1 / 0,
        promised,
        made,
    )
    assert made["layers"]["0"]["mlp"]["down"]["weight"].sharding.spec == AXES.spec(None, "mlp", "embed")
    assert made["embedding"]["weight"].addressable_shards[0].data.shape == (16, 4)
    # 32 x 16 table; per layer q, out 16 x 8 x 4, k, v 16 x 4 x 4, three 16 x 24, two scales; final scale.
    assert count_parameters(promised) == count_parameters(toy_params) == 512 + 2 * (1024 + 512 + 1152 + 32) + 16


def test_logits_at_the_start_are_of_unit_size(toy_params, forward, one_device):
    """An untrained model is near the uniform loss ln V, whatever its width."""
    logits = forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS)
    assert 0.5 < float(jnp.std(logits)) < 2


def test_rules_that_shard_nothing_give_the_same_logits(toy_params, forward, one_device):
    with jax.set_mesh(mesh_of((4, 2))):
        whole = forward(TOY, UNSHARDED, toy_params, TOKENS, SEGMENTS, POSITIONS)
    np.testing.assert_allclose(whole, forward(TOY, AXES, toy_params, TOKENS, SEGMENTS, POSITIONS), **TOLERANCE)
