import jax.numpy as jnp
import numpy as np
from toy import TOLERANCE

from model.rope import rotary_angles, rotate


def test_angles_fall_geometrically_from_the_position_itself():
    angles = rotary_angles(jnp.array([[0, 1, 5]]), head_dim=4, base=100.0)
    np.testing.assert_allclose(angles, [[[0, 0], [1, 0.1], [5, 0.5]]], **TOLERANCE)
    assert angles.dtype == jnp.float32


def test_a_dimension_is_paired_with_the_one_half_a_head_on_not_with_its_neighbour():
    """Llama checkpoints in the Hugging Face layout pair (0, 2) and (1, 3); others pair (0, 1) and (2, 3)."""
    quarter_turns = jnp.array([[[jnp.pi / 2, 0.0]]])
    x_BTNH = jnp.array([[[[1.0, 2.0, 3.0, 4.0]]]])
    np.testing.assert_allclose(rotate(x_BTNH, quarter_turns), [[[[-3, 2, 1, 4]]]], **TOLERANCE)


def test_products_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def product(at_q, at_k):
        def turn(x, position):
            return rotate(x, rotary_angles(jnp.array([[position]]), head_dim=8, base=10_000.0))

        return float(jnp.sum(turn(q, at_q) * turn(k, at_k)))

    np.testing.assert_allclose(product(9, 4), product(105, 100), rtol=1e-4)
    assert abs(product(9, 4) - product(4, 9)) > 1e-2


def test_angles_of_bfloat16_activations_are_float32():
    """bfloat16 counts positions exactly only up to 256: far positions would share an angle."""
    angles = rotary_angles(jnp.array([[1000, 1001]]), head_dim=2, base=10_000.0)
    np.testing.assert_array_equal(angles, [[[1000], [1001]]])
    x_BTNH = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
    turned = rotate(x_BTNH, angles)
    assert turned.dtype == jnp.bfloat16
    wanted = [np.cos(a) - np.sin(a) for a in (1000, 1001)]
    np.testing.assert_allclose(turned[0, :, 0, 0].astype(jnp.float32), wanted, rtol=2**-7)
