"""Generation with the cache, against running the whole forward pass again for every token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import AXES, TOY, mesh_of

from model.decode import generate
from model.transformer import apply

ROWS, SLOTS, NEW = 8, 6, 8
PROMPTS = np.random.default_rng(0).integers(3, TOY.vocab_size, (ROWS, SLOTS)).astype(np.int32)
LENGTHS = np.array([6, 1, 3, 5, 2, 4, 6, 3], np.int32)
NEVER = TOY.vocab_size
"""An id that no row ever chooses."""


@pytest.fixture(scope="module")
def continuations(toy_params):
    """Greedy continuations by brute force: the whole forward pass, token after token, no cache."""
    tokens = np.zeros((ROWS, SLOTS + NEW), np.int32)
    tokens[:, :SLOTS] = np.where(np.arange(SLOTS) < LENGTHS[:, None], PROMPTS, 0)
    positions = np.tile(np.arange(SLOTS + NEW, dtype=np.int32), (ROWS, 1))
    rows = np.arange(ROWS)
    with jax.set_mesh(mesh_of((1, 1))):
        forward = jax.jit(functools.partial(apply, TOY, AXES))
        for step in range(NEW):
            logits = np.asarray(forward(toy_params, tokens, np.ones_like(tokens), positions))
            tokens[rows, LENGTHS + step] = logits[rows, LENGTHS + step - 1].argmax(axis=-1)
    return np.array([tokens[row, n : n + NEW] for row, n in enumerate(LENGTHS)])


def run(params, prompts=PROMPTS, lengths=LENGTHS, *, stop_id=NEVER, **sampling):
    tokens, counts = generate(
        TOY, AXES, params, jnp.asarray(prompts), jnp.asarray(lengths), max_new_tokens=NEW, stop_id=stop_id, **sampling
    )
    return np.asarray(tokens), np.asarray(counts)


def test_cached_decoding_equals_running_everything_again(toy_params, continuations, one_device):
    tokens, counts = run(toy_params)
    np.testing.assert_array_equal(tokens, continuations)
    np.testing.assert_array_equal(counts, np.full(ROWS, NEW))
    assert len(np.unique(continuations)) > 10


def test_decoding_on_another_mesh_gives_the_same_tokens(toy_params, continuations):
    with jax.set_mesh(mesh_of((4, 2))):
        prompts, lengths = jax.device_put(PROMPTS, AXES.spec("batch", None)), jax.device_put(LENGTHS, AXES.spec("batch"))
        np.testing.assert_array_equal(run(toy_params, prompts, lengths)[0], continuations)


def test_what_fills_the_padding_changes_nothing(toy_params, continuations, one_device):
    noise = np.where(np.arange(SLOTS) < LENGTHS[:, None], PROMPTS, 31)
    np.testing.assert_array_equal(run(toy_params, noise)[0], continuations)
    wider = np.concatenate([noise, np.full((ROWS, 5), 30, np.int32)], axis=1)
    np.testing.assert_array_equal(run(toy_params, wider)[0], continuations)


def test_a_row_does_not_depend_on_its_company(toy_params, continuations, one_device):
    order = np.array([3, 0, 0, 7, 5, 5, 5, 1])
    np.testing.assert_array_equal(run(toy_params, PROMPTS[order], LENGTHS[order])[0], continuations[order])


def test_a_row_ends_before_the_stop_token_while_others_go_on(toy_params, continuations, one_device):
    stop_id = int(continuations[0, 3])
    tokens, counts = run(toy_params, stop_id=stop_id)
    wanted_counts = []
    for row in continuations:
        where = np.flatnonzero(row == stop_id)
        wanted_counts.append(where[0] if len(where) else NEW)
    np.testing.assert_array_equal(counts, wanted_counts)
    assert 0 < min(wanted_counts) or min(wanted_counts) == 0
    assert max(wanted_counts) == NEW
    for row, n in enumerate(wanted_counts):
        np.testing.assert_array_equal(tokens[row], [*continuations[row, :n], *[0] * (NEW - n)])


def test_a_stop_token_at_once_leaves_nothing(toy_params, continuations, one_device):
    order = np.zeros(ROWS, int)
    tokens, counts = run(toy_params, PROMPTS[order], LENGTHS[order], stop_id=int(continuations[0, 0]))
    assert not tokens.any()
    assert not counts.any()


def test_sampling_is_decided_by_its_key(toy_params, one_device):
    draw = functools.partial(run, toy_params, sample=True, temperature=1.0)
    first = draw(key=jax.random.key(1))[0]
    np.testing.assert_array_equal(draw(key=jax.random.key(1))[0], first)
    assert np.any(draw(key=jax.random.key(2))[0] != first)


def test_sampling_follows_the_tempered_distribution(toy_params, one_device):
    """First tokens of the same prompt in 4 x 512 rows against softmax(logits / 2); cold draws are the greedy ones."""
    tokens = np.tile(PROMPTS[:1], (512, 1))
    lengths = np.full(512, LENGTHS[0])
    ones = np.ones((1, SLOTS), np.int32)
    logits = apply(TOY, AXES, toy_params, PROMPTS[:1], ones, np.arange(SLOTS, dtype=np.int32)[None])[0, -1]
    draw = functools.partial(
        generate, TOY, AXES, toy_params, tokens, lengths, max_new_tokens=1, stop_id=NEVER, sample=True
    )
    drawn = np.concatenate([draw(temperature=2.0, key=jax.random.key(i))[0][:, 0] for i in range(4)])
    share = np.bincount(drawn, minlength=TOY.vocab_size) / len(drawn)
    np.testing.assert_allclose(share, jax.nn.softmax(logits / 2), atol=0.03)
    cold = draw(temperature=1e-4, key=jax.random.key(0))[0][:, 0]
    np.testing.assert_array_equal(cold, np.full(512, int(jnp.argmax(logits))))
