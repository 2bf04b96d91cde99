import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.sampling import LOWEST, SamplingConfig, choose, filter_logits, penalize

LOGITS = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]))


def kept(**fields):
    filtered = filter_logits(LOGITS, SamplingConfig(**{"temperature": 1.0, **fields}))
    return (np.asarray(filtered) > LOWEST).astype(int).tolist()


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, [[1, 1, 1], [1, 1, 1]]),
        ({"top_k": 1}, [[1, 0, 0], [0, 0, 1]]),
        ({"top_k": 2}, [[1, 1, 0], [1, 1, 1]]),
        ({"top_k": 99}, [[1, 1, 1], [1, 1, 1]]),
        ({"top_p": 0.45}, [[1, 0, 0], [0, 0, 1]]),
        ({"top_p": 0.6}, [[1, 1, 0], [0, 0, 1]]),
        ({"top_p": 0.01}, [[1, 0, 0], [0, 0, 1]]),
        ({"min_p": 0.5}, [[1, 1, 0], [0, 0, 1]]),
        ({"min_p": 0.1}, [[1, 1, 1], [1, 1, 1]]),
        ({"top_k": 2, "min_p": 0.7}, [[1, 0, 0], [0, 0, 1]]),
    ],
)
def test_filters_keep_these_tokens(fields, wanted):
    """Ties at the k-th place are kept: neither of two equally likely tokens is less allowed than the other."""
    assert kept(**fields) == wanted


def test_the_temperature_comes_before_the_filters():
    """At temperature 4 the first row is (0.37 0.33 0.30): the likeliest alone no longer holds 0.45."""
    assert kept(temperature=4.0, top_p=0.45)[0] == [1, 1, 0]


def test_a_penalty_lowers_positive_and_negative_logits_of_seen_tokens_only():
    logits = jnp.array([[2.0, -2.0, 2.0, 0.5]])
    seen = jnp.array([[True, True, False, False]])
    np.testing.assert_array_equal(penalize(logits, seen, 2.0), [[1.0, -4.0, 2.0, 0.5]])
    config = SamplingConfig(repetition_penalty=2.0)
    assert choose(logits, jax.random.key(0), config, seen).tolist() == [2]


def test_draws_follow_what_is_left_of_the_distribution():
    config = SamplingConfig(temperature=1.0, top_k=2)
    rows = jnp.tile(LOGITS[:1], (8192, 1))
    share = np.bincount(choose(rows, jax.random.key(3), config, None), minlength=3) / 8192
    np.testing.assert_allclose(share, [0.625, 0.375, 0], atol=0.02)


def test_greedy_takes_the_likeliest():
    assert choose(LOGITS, jax.random.key(0), SamplingConfig(), None).tolist() == [0, 2]


@pytest.mark.parametrize("fields", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_filter_without_a_temperature_is_refused_not_ignored(fields):
    with pytest.raises(ValueError, match="temperature 0 draws nothing"):
        SamplingConfig(**fields)
