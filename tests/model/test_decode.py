"""Generation with the cache, against running the whole forward pass again for every token."""

import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import AXES, TOY, copy_to_host, mesh_of

from model.decode import advance, generate, start
from model.sampling import SamplingConfig
from model.transformer import apply, init

MODEL = msgspec.structs.replace(TOY, tied_head=False)

ROWS, SLOTS, NEW = 8, 6, 8
PROMPTS = np.random.default_rng(0).integers(3, MODEL.vocab_size, (ROWS, SLOTS)).astype(np.int32)
LENGTHS = np.array([6, 1, 3, 5, 2, 4, 6, 3], np.int32)
NEVER = MODEL.vocab_size
"""An id that no row ever chooses."""


@pytest.fixture(scope="module")
def params():
    """Parameters whose layers are three times as loud as fresh ones: a token depends on all before it."""
    with jax.set_mesh(mesh_of((1, 1))):
        fresh = copy_to_host(jax.jit(init, static_argnums=(0, 1))(MODEL, AXES, jax.random.key(0)))
    return {**fresh, "layers": jax.tree.map(lambda leaf: leaf * np.float32(3), fresh["layers"])}


@pytest.fixture(scope="module")
def continuations(params):
    """Greedy continuations by brute force: the whole forward pass, token after token, no cache."""
    tokens = np.zeros((ROWS, SLOTS + NEW), np.int32)
    tokens[:, :SLOTS] = np.where(np.arange(SLOTS) < LENGTHS[:, None], PROMPTS, 0)
    positions = np.tile(np.arange(SLOTS + NEW, dtype=np.int32), (ROWS, 1))
    rows = np.arange(ROWS)
    with jax.set_mesh(mesh_of((1, 1))):
        forward = jax.jit(functools.partial(apply, MODEL, AXES))
        for step in range(NEW):
            logits = np.asarray(forward(params, tokens, np.ones_like(tokens), positions))
            tokens[rows, LENGTHS + step] = logits[rows, LENGTHS + step - 1].argmax(axis=-1)
    return np.array([tokens[row, n : n + NEW] for row, n in enumerate(LENGTHS)])


def run(params, prompts=PROMPTS, lengths=LENGTHS, *, stop_id=NEVER, key=None, **sampling):
    tokens, counts = generate(
        MODEL,
        AXES,
        params,
        jnp.asarray(prompts),
        jnp.asarray(lengths),
        max_new_tokens=NEW,
        stop_ids=(stop_id,),
        sampling=SamplingConfig(**sampling),
        key=key,
    )
    return np.asarray(tokens), np.asarray(counts)


def test_cached_decoding_equals_running_everything_again(params, continuations, one_device):
    tokens, counts = run(params)
    np.testing.assert_array_equal(tokens, continuations)
    np.testing.assert_array_equal(counts, np.full(ROWS, NEW))
    assert len(np.unique(continuations)) > 15


def test_decoding_on_another_mesh_gives_the_same_tokens(params, continuations):
    with jax.set_mesh(mesh_of((4, 2))):
        prompts, lengths = (
            jax.device_put(PROMPTS, AXES.spec("batch", None)),
            jax.device_put(LENGTHS, AXES.spec("batch")),
        )
        np.testing.assert_array_equal(run(params, prompts, lengths)[0], continuations)


def test_what_fills_the_padding_changes_nothing(params, continuations, one_device):
    noise = np.where(np.arange(SLOTS) < LENGTHS[:, None], PROMPTS, 31)
    np.testing.assert_array_equal(run(params, noise)[0], continuations)
    wider = np.concatenate([noise, np.full((ROWS, 5), 30, np.int32)], axis=1)
    np.testing.assert_array_equal(run(params, wider)[0], continuations)


def test_a_row_does_not_depend_on_its_company(params, continuations, one_device):
    order = np.array([3, 0, 0, 7, 5, 5, 5, 1])
    np.testing.assert_array_equal(run(params, PROMPTS[order], LENGTHS[order])[0], continuations[order])


def test_a_row_ends_before_the_stop_token_while_others_go_on(params, continuations, one_device):
    stop_id = int(continuations[0, 2])
    tokens, counts = run(params, stop_id=stop_id)
    wanted_counts = []
    for row in continuations:
        where = np.flatnonzero(row == stop_id)
        wanted_counts.append(where[0] if len(where) else NEW)
    np.testing.assert_array_equal(counts, wanted_counts)
    assert 0 < wanted_counts[0] < max(wanted_counts) == NEW
    for row, n in enumerate(wanted_counts):
        np.testing.assert_array_equal(tokens[row], [*continuations[row, :n], *[0] * (NEW - n)])


def test_a_stop_token_at_once_leaves_nothing(params, continuations, one_device):
    order = np.zeros(ROWS, int)
    tokens, counts = run(params, PROMPTS[order], LENGTHS[order], stop_id=int(continuations[0, 0]))
    assert not tokens.any()
    assert not counts.any()


def test_sampling_is_decided_by_its_key(params, one_device):
    draw = functools.partial(run, params, temperature=1.0)
    first = draw(key=jax.random.key(1))[0]
    np.testing.assert_array_equal(draw(key=jax.random.key(1))[0], first)
    assert np.any(draw(key=jax.random.key(2))[0] != first)


def test_sampling_follows_the_tempered_distribution(params, one_device):
    """First tokens of one prompt in 4 x 512 rows follow softmax(logits / 2); cold ones are the greedy one."""
    tokens = np.tile(PROMPTS[:1], (512, 1))
    lengths = np.full(512, LENGTHS[0])
    prompt, positions = jnp.asarray(PROMPTS[:1]), jnp.arange(SLOTS)[None]
    logits = np.asarray(jax.jit(apply, static_argnums=(0, 1))(MODEL, AXES, params, prompt, positions * 0, positions))[
        0, -1
    ]

    def draw(temperature, seed):
        sampling = SamplingConfig(temperature=temperature)
        return generate(
            MODEL, AXES, params, tokens, lengths, max_new_tokens=1, stop_ids=(), sampling=sampling,
            key=jax.random.key(seed),
        )[0][:, 0]  # fmt: skip

    drawn = np.concatenate([draw(2.0, seed) for seed in range(4)])
    share = np.bincount(drawn, minlength=MODEL.vocab_size) / len(drawn)
    np.testing.assert_allclose(share, jax.nn.softmax(logits / 2), atol=0.03)
    cold = draw(1e-4, 0)
    np.testing.assert_array_equal(cold, np.full(512, int(jnp.argmax(logits))))


def test_draws_of_different_rows_and_steps_are_independent(params, one_device):
    """With all-zero parameters every token is uniform: neighbours in a row or column agree one time in V."""
    uniform = jax.tree.map(np.zeros_like, params)
    tokens, _ = generate(
        MODEL, AXES, uniform, jnp.ones((512, 1), jnp.int32), jnp.ones(512, jnp.int32), max_new_tokens=4,
        stop_ids=(), sampling=SamplingConfig(temperature=1.0), key=jax.random.key(5),
    )  # fmt: skip
    tokens = np.asarray(tokens)
    for agree in (tokens[:, 1:] == tokens[:, :-1], tokens[1:] == tokens[:-1]):
        assert 0.5 < agree.mean() * MODEL.vocab_size < 1.5


def test_answers_shown_as_they_come_are_those_of_one_call(params, continuations, one_device):
    state = start(MODEL, AXES, params, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS), max_new_tokens=NEW)
    for until in (1, 4, NEW):
        state = advance(MODEL, AXES, params, state, until=until, stop_ids=(NEVER,))
        np.testing.assert_array_equal(state.tokens_BN[:, :until], continuations[:, :until])
        assert not np.asarray(state.tokens_BN[:, until:]).any()


def test_any_of_several_stop_tokens_ends_a_row(params, continuations, one_device):
    """Llama 3 ends a turn with one id and a text with another: knowing one of them, a model talks on."""
    ids = (int(continuations[0, 3]), int(continuations[1, 2]))
    tokens, counts = generate(
        MODEL, AXES, params, jnp.asarray(PROMPTS), jnp.asarray(LENGTHS), max_new_tokens=NEW, stop_ids=ids
    )
    for row, wanted in enumerate(continuations):
        where = np.flatnonzero(np.isin(wanted, ids))
        assert counts[row] == (where[0] if len(where) else NEW)
        np.testing.assert_array_equal(tokens[row, : counts[row]], wanted[: counts[row]])


def test_a_repetition_penalty_counts_the_prompt_but_not_its_padding(params, one_device):
    """With all logits equal, whatever was not seen yet comes next, in the order of ids."""
    uniform = jax.tree.map(np.zeros_like, params)
    uniform["final_norm"] = {"scale": np.ones(MODEL.dim, np.float32)}
    prompts = jnp.array([[0, 1, 9, 9]])
    # Zero logits are not lowered by a penalty, so a head that gives ones is needed.
    uniform["embedding"] = {"weight": np.ones((MODEL.vocab_size, MODEL.dim), np.float32)}
    uniform["head"] = {"weight": np.full((MODEL.dim, MODEL.vocab_size), 1 / MODEL.dim, np.float32)}
    tokens, _ = generate(
        MODEL, AXES, uniform, prompts, jnp.array([2]), max_new_tokens=8, stop_ids=(),
        sampling=SamplingConfig(repetition_penalty=1.5),
    )  # fmt: skip
    assert tokens[0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
