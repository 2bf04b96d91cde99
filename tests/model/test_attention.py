import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from toy import TOLERANCE, packed_mask

from model.attention import alibi_slopes, attend, cached_mask

WHOLE = PartitionSpec(None, None, None, None)


def test_packed_mask_is_causal_within_a_segment_and_padding_sees_padding():
    mask = packed_mask(jnp.array([[1, 1, 2, 2, 0, 0]]), jnp.array([[0, 1, 0, 1, 0, 0]]))
    wanted = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(mask[0].astype(int), wanted)


def test_cached_mask_sees_slots_up_to_the_query_position():
    mask = cached_mask(jnp.array([[0, 2], [3, 1]]), 4)
    wanted = [[[1, 0, 0, 0], [1, 1, 1, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]]]
    np.testing.assert_array_equal(mask.astype(int), wanted)


def test_equal_scores_average_the_visible_values_exactly(one_device):
    q, k = jnp.zeros((1, 3, 1, 2)), jnp.ones((1, 1, 3, 2))
    v = jnp.array([[3.0, 0.0], [5.0, 2.0], [100.0, 100.0]])[None, None]
    out = attend(
        q, k, v, packed_mask(jnp.array([[1, 1, 2]]), jnp.array([[0, 1, 0]])), layout="BKSH", scale=1.0, out_spec=WHOLE
    )
    np.testing.assert_allclose(out[0, :, 0], [[3, 0], [4, 1], [100, 100]], **TOLERANCE)


def test_neighbouring_query_heads_share_a_key_head(one_device):
    """Heads (0, 1) read key head 0, (2, 3) read 1; (0, 2) and (1, 3) would fit no checkpoint."""
    v = jnp.array([10.0, 20.0])[None, :, None, None] * jnp.ones((1, 2, 1, 2))
    out = attend(
        jnp.ones((1, 1, 4, 2)),
        jnp.ones((1, 2, 1, 2)),
        v,
        jnp.ones((1, 1, 1), bool),
        layout="BKSH",
        scale=1.0,
        out_spec=WHOLE,
    )
    np.testing.assert_array_equal(out[0, 0, :, 0], [10, 10, 20, 20])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_beyond_any_exponential_stay_finite(one_device, dtype):
    q = jnp.full((1, 2, 1, 2), 300.0, dtype)
    k = jnp.array([[300.0, 300.0], [-300.0, -300.0]], dtype)[None, None]
    v = jnp.array([[1.0, 0.0], [0.0, 1.0]], dtype)[None, None]
    out = attend(
        q, k, v, packed_mask(jnp.array([[1, 1]]), jnp.array([[0, 1]])), layout="BKSH", scale=1.0, out_spec=WHOLE
    )
    np.testing.assert_array_equal(out[0, :, 0].astype(jnp.float32), [[1, 0], [1, 0]])


def test_a_window_of_three_sees_itself_and_two_before_it():
    """Windows count in positions of the segment, and one that is off by one shows only at its edge."""
    segments, positions = jnp.array([[1, 1, 1, 1, 1, 2, 2]]), jnp.array([[0, 1, 2, 3, 4, 0, 1]])
    wanted = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(packed_mask(segments, positions, 3)[0].astype(int), wanted)
    np.testing.assert_array_equal(cached_mask(jnp.array([[4]]), 7, 3).astype(int), [[[0, 0, 1, 1, 1, 0, 0]]])


def test_alibi_slopes_of_heads_that_are_no_power_of_two():
    """8 slopes of 8 heads, then every other one of 16: not 12 slopes of 12."""
    assert alibi_slopes(2) == [2**-4, 2**-8]
    assert alibi_slopes(12)[:8] == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(12)[8:] == [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]


def test_a_soft_cap_bends_scores_before_the_mask(one_device):
    """Scores (10, 0) capped at 2 are (2 tanh 5, 0): the masked key stays unseen however low the cap."""
    q, k = jnp.full((1, 3, 1, 1), 10.0), jnp.array([[1.0], [0.0], [5.0]])[None, None]
    v = jnp.array([[1.0], [0.0], [50.0]])[None, None]
    out = attend(
        q, k, v, jnp.array([[[1, 0, 0], [1, 1, 0], [1, 1, 0]]], bool), layout="BKSH", scale=1.0, out_spec=WHOLE,
        softcap=2.0,
    )  # fmt: skip
    share = 1 / (1 + np.exp(-2 * np.tanh(5)))
    np.testing.assert_allclose(out[0, :, 0, 0], [1, share, share], **TOLERANCE)
