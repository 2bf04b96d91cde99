import math

import jax.numpy as jnp
import numpy as np
import pytest
from toy import TOLERANCE

from model.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeConfig,
    YarnScaling,
)
from model.rope import Rotation, make_rotation, rotate


def rotation(rope, positions, *, head_dim, length=None):
    positions_BT = jnp.array([positions])
    lengths_BT = jnp.full_like(positions_BT, len(positions) if length is None else length)
    return make_rotation(rope, positions_BT, lengths_BT, head_dim=head_dim)


def angles(rope, positions, *, head_dim, length=None):
    """The angles in (-pi, pi] that a rotation turns by."""
    turned = rotation(rope, positions, head_dim=head_dim, length=length)
    return np.arctan2(turned.sin_BTF, turned.cos_BTF)[0]


def frequencies(rope, *, head_dim, length=1):
    """Angles at position one: the frequencies themselves, as all are below pi."""
    return angles(rope, [1], head_dim=head_dim, length=length)[0]


def test_angles_fall_geometrically_from_the_position_itself():
    found = angles(RopeConfig(base=100.0), [0, 1, 3], head_dim=4)
    np.testing.assert_allclose(found, [[0, 0], [1, 0.1], [3, 0.3]], **TOLERANCE)


def test_a_dimension_is_paired_with_the_one_half_a_head_on_not_with_its_neighbour():
    """Llama checkpoints in the Hugging Face layout pair (0, 2) and (1, 3); Cohere's pair (0, 1) and (2, 3)."""
    quarter_and_none = Rotation(jnp.array([[[0.0, 1.0]]]), jnp.array([[[1.0, 0.0]]]))
    x_BTNH = jnp.array([[[[1.0, 2.0, 3.0, 4.0]]]])
    np.testing.assert_array_equal(rotate(x_BTNH, quarter_and_none, interleaved=False), [[[[-3, 2, 1, 4]]]])
    np.testing.assert_array_equal(rotate(x_BTNH, quarter_and_none, interleaved=True), [[[[-2, 1, 3, 4]]]])


def test_a_partial_rotation_leaves_the_last_dimensions_as_they_are():
    x_BTNH = jnp.arange(8.0).reshape(1, 1, 1, 8)
    rope = RopeConfig(fraction=0.5)
    turned = rotate(x_BTNH, rotation(rope, [7], head_dim=8), interleaved=False)
    np.testing.assert_array_equal(turned[..., 4:], x_BTNH[..., 4:])
    assert np.all(np.asarray(turned[..., :4]) != np.asarray(x_BTNH[..., :4]))
    np.testing.assert_allclose(frequencies(rope, head_dim=8), [1, 0.01], **TOLERANCE)


def test_products_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def product(at_q, at_k):
        def turn(x, position):
            return rotate(x, rotation(RopeConfig(), [position], head_dim=8), interleaved=False)

        return float(jnp.sum(turn(q, at_q) * turn(k, at_k)))

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)
    assert abs(product(9, 4) - product(4, 9)) > 1e-2


def test_angles_of_bfloat16_activations_are_float32():
    """bfloat16 counts positions exactly only up to 256: far positions would share an angle."""
    turned = rotate(
        jnp.ones((1, 2, 1, 2), jnp.bfloat16), rotation(RopeConfig(), [1000, 1001], head_dim=2), interleaved=False
    )
    assert turned.dtype == jnp.bfloat16
    wanted = [np.cos(a) - np.sin(a) for a in (1000, 1001)]
    np.testing.assert_allclose(turned[0, :, 0, 0].astype(jnp.float32), wanted, rtol=2**-7)


def test_linear_scaling_divides_every_frequency():
    rope = RopeConfig(base=100.0, scaling=LinearScaling(factor=4.0))
    np.testing.assert_allclose(frequencies(rope, head_dim=4), [0.25, 0.025], **TOLERANCE)


def test_llama3_scaling_keeps_fast_frequencies_divides_slow_ones_and_blends_between():
    """With original length 8 pi wavelengths of 2 pi, 4 pi and 20 pi turn 4, 2 and 0.4 times in it."""
    scaling = Llama3Scaling(factor=8.0, low_frequency_factor=1.0, high_frequency_factor=3.0, original_length=25)
    base = 1000.0
    plain = base ** -np.array([0, 0.25, 0.5, 0.75])
    turns = 25 * plain / (2 * math.pi)
    blend = np.clip((turns - 1) / 2, 0, 1)
    assert blend[0] == 1
    assert blend[-1] == 0
    wanted = plain * (blend + (1 - blend) / 8)
    np.testing.assert_allclose(frequencies(RopeConfig(base=base, scaling=scaling), head_dim=8), wanted, **TOLERANCE)


def test_yarn_keeps_fast_frequencies_divides_slow_ones_and_scales_what_it_turns():
    """4 turns in 64 tokens are dimension 1.6 of 16, one turn is 4.03: outwards to whole ones, the blend is 1 to 5."""
    scaling = YarnScaling(factor=4.0, original_length=64, fast_turns=4.0, slow_turns=1.0, attention_factor=1.25)
    rope = RopeConfig(base=100.0, scaling=scaling)
    found = frequencies(rope, head_dim=16)
    plain = 100.0 ** -(np.arange(8) / 8)
    stretched = np.array([0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    np.testing.assert_allclose(found, plain * (1 - stretched) + plain / 4 * stretched, **TOLERANCE)
    turned = rotation(rope, [0], head_dim=16)
    np.testing.assert_allclose(turned.cos_BTF, np.full((1, 1, 8), 1.25), **TOLERANCE)


@pytest.mark.parametrize(("length", "base"), [(8, 100.0), (16, 100.0 * 3 ** (4 / 2))])
def test_a_dynamic_base_grows_only_beyond_the_original_length(length, base):
    rope = RopeConfig(base=100.0, scaling=DynamicScaling(factor=2.0, original_length=8))
    wanted = base ** -np.array([0, 0.5])
    np.testing.assert_allclose(frequencies(rope, head_dim=4, length=length), wanted, **TOLERANCE)


@pytest.mark.parametrize(("length", "factors"), [(8, [1.0, 2.0]), (9, [3.0, 4.0])])
def test_long_scaling_changes_its_list_beyond_the_original_length(length, factors):
    scaling = LongScaling(short_factors=(1.0, 2.0), long_factors=(3.0, 4.0), original_length=8, attention_factor=1.0)
    rope = RopeConfig(base=100.0, scaling=scaling)
    wanted = np.array([1.0, 0.1]) / factors
    np.testing.assert_allclose(frequencies(rope, head_dim=4, length=length), wanted, **TOLERANCE)
