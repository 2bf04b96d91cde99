"""Every kernel gives what the dense one gives, in value and gradient, for whatever a model or a row can ask of it."""

import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import TOLERANCE, TOY, mesh_of

from model.attention import Places, attend, distances, visible
from model.attention_blockwise import Blocks, Scoring, list_pairs
from model.attention_choice import Kernel
from model.attention_cudnn import attend_cudnn
from model.attention_packed import attend_packed
from model.attention_splash import make_splash
from model.config import ComputeConfig, LayerKind
from model.parallel import AxisRules
from model.transformer import abstract, apply

LENGTH = 24
AXES = AxisRules(length=None)
SEGMENTS = np.array([
    [1] * 5 + [2] * 9 + [3] * 1 + [4] * 6 + [0] * 3,
    [1] * 24,
    [1] * 1 + [2] * 22 + [0] * 1,
    [1] * 12 + [2] * 12,
], np.int32)  # fmt: skip
"""Borders on those of blocks, within them, a segment over all of them, one of a single token, padding."""
LONG = np.repeat(np.int32([[1, 2, 3, 0], [1, 1, 1, 2]]), [50, 130, 40, 30], axis=1)
ASKED = {
    "plain": {},
    "window": {"window": 3},
    "window-of-blocks": {"window": 9},
    "softcap": {"softcap": 1.5},
    "alibi": {"alibi": True},
    "all": {"window": 7, "softcap": 1.5, "alibi": True},
}


def positions_of(segments_BT):
    """Where each token stands in its segment; 0 in padding, as in `data.batch.Batch`."""
    index = np.arange(segments_BT.shape[1])
    starts = np.where(np.diff(segments_BT, axis=1, prepend=-1) != 0, index, 0)
    return np.where(segments_BT > 0, index - np.maximum.accumulate(starts, axis=1), 0).astype(np.int32)


def make_case(segments=SEGMENTS, *, heads=4, kv_heads=2, width=8, seed=0):
    """Queries, keys, values, a cotangent that is 0 at padding alone, and places."""
    rng, (rows, length) = np.random.default_rng(seed), segments.shape

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    q, k, v = (draw(rows, length, n, width) for n in (heads, kv_heads, kv_heads))
    g = 0.25 * draw(rows, length, heads, width) * (segments > 0)[:, :, None, None].astype(np.float32)
    return (q, k, v), g, Places(jnp.asarray(segments), jnp.asarray(positions_of(segments)))


def dense(q, k, v, query, key, *, scale=0.4, window=0, softcap=0.0, alibi=False):
    return attend(
        q, k.transpose(0, 2, 3, 1), v.transpose(0, 2, 3, 1), visible(query, key, window), layout="BKHS", scale=scale,
        out_spec=AXES.spec("batch", None, "heads", None), softcap=softcap,
        alibi_BTS=distances(query.positions_BT, key.positions_BT) if alibi else None,
    )  # fmt: skip


def lean(q, k, v, query, key, *, name="blockwise", block=8, **asked):
    return attend_packed(q, k, v, query, key, kernel=Kernel(name=name, block=block), scale=0.4, axes=AXES, **asked)


def run(attention, arrays, g, query, key, mesh=(1, 1)):
    """The weighted sums at real queries, and the gradients of queries, keys and values for the cotangent g."""

    def both(arrays, g, query, key):
        out, pull = jax.vjp(lambda q, k, v: attention(q, k, v, query, key), *arrays)
        return jnp.where((query.segments_BT > 0)[:, :, None, None], out, 0.0), pull(g)

    with jax.set_mesh(mesh_of(mesh)):
        spec = AXES.spec("batch", None, "heads", None)
        arrays, g = jax.device_put((arrays, g), spec)
        return jax.tree.map(np.asarray, jax.jit(both)(arrays, g, query, key))


def assert_alike(given, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), given, wanted)


@pytest.mark.parametrize(
    ("asked", "block"), [*((name, 8) for name in ASKED), ("all", 7), ("all", 100)], ids=lambda value: str(value)
)
def test_blocks_are_the_whole(asked, block):
    """Blocks that divide a row, that do not, and one block."""
    arrays, g, places = make_case()
    given = run(functools.partial(lean, block=block, **ASKED[asked]), arrays, g, places, places)
    assert_alike(given, run(functools.partial(dense, **ASKED[asked]), arrays, g, places, places))


@pytest.mark.parametrize("asked", [{}, {"window": 130, "softcap": 1.5}], ids=["plain", "window-softcap"])
def test_splash_is_the_whole(asked):
    """Interpreted; the row is no multiple of a block, and its window counts places of the row instead of positions."""
    arrays, g, places = make_case(LONG)
    given = run(functools.partial(lean, name="splash", block=128, **asked), arrays, g, places, places)
    assert_alike(given, run(functools.partial(dense, **asked), arrays, g, places, places))


@pytest.mark.parametrize("window", [0, 3])
def test_what_cudnn_is_asked_for_is_the_whole(window):
    """Computed by XLA, which is given the very same call."""

    def ask(q, k, v, query, key):
        return attend_cudnn(0.4 * q, k, v, query, key, window=window, implementation="xla")

    arrays, g, places = make_case()
    wanted = run(functools.partial(dense, window=window), arrays, g, places, places)
    assert_alike(run(ask, arrays, g, places, places), wanted)


@pytest.mark.parametrize("asked", [{}, {"window": 5}], ids=["plain", "window"])
def test_cudnn_calls_are_made_for_cuda_without_a_gpu(asked, monkeypatch):
    """As far as a machine without one goes: no GPU has run them."""
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    arrays, _, places = make_case()

    def total(q, k, v):
        return jnp.sum(lean(q, k, v, places, places, name="cudnn", **asked).astype(jnp.float32))

    with jax.set_mesh(mesh_of((2, 2))):
        heads = jax.NamedSharding(jax.sharding.get_mesh(), AXES.spec("batch", None, "heads", None))
        abstract = [jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=heads) for x in arrays]
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(*abstract)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaScaleBiasSoftmax(") == 1
    assert text.count("@__cudnn$fmhaScaleBiasSoftmaxBackward(") == 1


@pytest.mark.parametrize("name", ["blockwise", "splash"])
def test_devices_split_rows_and_heads(name):
    asked = ASKED["all"] if name == "blockwise" else {"window": 7}
    arrays, g, places = make_case(heads=8, kv_heads=4)
    given = run(functools.partial(lean, name=name, **asked), arrays, g, places, places, mesh=(2, 4))
    assert_alike(given, run(functools.partial(dense, **asked), arrays, g, places, places))


@pytest.mark.parametrize("name", ["blockwise", "splash"])
def test_devices_split_the_queries_of_a_row(name):
    """Keys are whole everywhere, and their gradients the sums over devices with different queries."""
    axes = AxisRules(heads=None, mlp=None, vocab=None, length="tensor")
    asked = ASKED["all"] if name == "blockwise" else {"softcap": 1.5}
    arrays, g, places = make_case(SEGMENTS if name == "blockwise" else np.repeat(LONG, 2, axis=1)[:, :256])
    index_T = jnp.arange(places.segments_BT.shape[1], dtype=jnp.int32)

    def split(q, k, v, query, key):
        kernel = Kernel(name=name, block=8)
        q = jax.reshard(q, axes.spec("batch", "length", None, None))
        k, v = (jax.reshard(x, axes.spec("batch", None, None, None)) for x in (k, v))
        query, key = query._replace(index_T=index_T), key._replace(index_T=index_T)
        out = attend_packed(q, k, v, query, key, kernel=kernel, scale=0.4, axes=axes, **asked)
        return jax.reshard(out, AXES.spec("batch", None, "heads", None))

    given = run(split, arrays, g, places, places, mesh=(2, 2))
    assert_alike(given, run(functools.partial(dense, **asked), arrays, g, places, places))


def test_splash_refuses_shards_that_would_have_to_be_filled_up():
    with pytest.raises(ValueError, match=r"rows of 640 positions on 4 devices .* use rows of 512 or 1024"):
        make_splash(640, 640, block=128, shards=4)


def test_a_part_of_the_queries_is_that_part_of_the_whole():
    arrays, g, places = make_case()
    (q, k, v), part = arrays, slice(7, 18)
    query = Places(places.segments_BT[:, part], places.positions_BT[:, part], jnp.arange(7, 18, dtype=jnp.int32))
    given = run(functools.partial(lean, **ASKED["all"]), (q[:, part], k, v), g[:, part], query, places)
    outside = jnp.asarray([index < 7 or index >= 18 for index in range(LENGTH)])[None, :, None, None]
    out, (of_q, *of_keys) = run(
        functools.partial(dense, **ASKED["all"]), arrays, jnp.where(outside, 0.0, g), places, places
    )  # fmt: skip
    assert_alike(given, (out[:, part], (of_q[:, part], *of_keys)))


@pytest.mark.parametrize("name", ["blockwise", "splash", "cudnn"])
def test_packed_examples_stay_apart_whatever_the_kernel(name, monkeypatch):
    """Peers keep the borders of packed examples with some kernels and lose them, with a warning, in others."""
    xla = functools.partial(attend_cudnn, implementation="xla")
    monkeypatch.setattr("model.attention_packed.attend_cudnn", xla)
    arrays, _, places = make_case()
    of_second = places.segments_BT == 2
    g = jnp.where(of_second[:, :, None, None], jnp.ones_like(arrays[0]), 0.0)
    _, gradients = run(functools.partial(lean, name=name), arrays, g, places, places)
    for gradient in gradients:
        felt_BT = np.any(gradient != 0, axis=(2, 3))
        assert not np.any(felt_BT & ~np.asarray(of_second))
    assert np.any(gradients[0]) and np.any(gradients[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scores_beyond_any_exponential_stay_finite_in_blocks(one_device, dtype):
    q = jnp.full((1, 4, 1, 2), 300.0, dtype)
    k = jnp.array([[300.0, 300.0], [-300.0, -300.0]] * 2, dtype)[None, :, None]
    v = jnp.array([[1.0, 0.0], [0.0, 1.0]] * 2, dtype)[None, :, None]
    places = Places(jnp.array([[1, 1, 2, 2]]), jnp.array([[0, 1, 0, 1]]))

    @jax.jit
    def both(q, k, v):
        out, pull = jax.vjp(lambda q, k, v: lean(q, k, v, places, places, block=1), q, k, v)
        return out, pull(jnp.ones_like(out))

    out, gradients = both(q, k, v)
    np.testing.assert_array_equal(out[0, :, 0].astype(jnp.float32), [[1, 0]] * 4)
    assert all(np.all(np.isfinite(x.astype(jnp.float32))) for x in gradients)


def test_pairs_of_blocks_in_the_future_or_beyond_the_window_are_not_in_the_program():
    """Of 8 blocks of 4 with a window of 5: each block, and the one before it, in which 4 positions are near enough."""
    segments = jnp.ones((8, 1, 4), jnp.int32)
    places = Places(segments, jnp.arange(32, dtype=jnp.int32).reshape(8, 1, 4))
    blocks = Blocks(*(jnp.zeros(()),) * 3, places, places)

    def pairs(window):
        listed = list_pairs(Scoring(4, window, 0.0, ()), blocks)
        return list(zip(listed.query.tolist(), listed.key.tolist(), strict=True))

    assert pairs(0) == [(i, j) for i in range(8) for j in range(i + 1)]
    assert pairs(5) == [(i, j) for i in range(8) for j in range(max(0, i - 1), i + 1)]
    assert pairs(6) == [(i, j) for i in range(8) for j in range(max(0, i - 2), i + 1)]
    assert pairs(1) == [(i, i) for i in range(8)]


def test_blocks_of_other_segments_are_not_computed():
    """Rows (1 1 1 1 | 2 2 2 0 | 0 0 0 0) and (1 1 1 1 | 1 2 2 2 | 2 2 2 2): needed where either row needs it."""
    segments_XBT = jnp.asarray(
        np.int32([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2]])
    ).reshape(2, 3, 4).swapaxes(0, 1)  # fmt: skip
    places = Places(segments_XBT, jnp.zeros_like(segments_XBT))

    def needed(rows):
        kept = jax.tree.map(lambda x: x[:, rows], places)
        listed = list_pairs(Scoring(4, 0, 0.0, ()), Blocks(*(jnp.zeros(()),) * 3, kept, kept))
        return dict(
            zip(zip(listed.query.tolist(), listed.key.tolist(), strict=True), listed.is_needed.tolist(), strict=True)
        )

    diagonal = {(i, i): True for i in range(3)}
    assert needed(slice(0, 1)) == diagonal | {(1, 0): False, (2, 0): False, (2, 1): True}
    assert needed(slice(1, 2)) == diagonal | {(1, 0): True, (2, 0): False, (2, 1): True}
    assert needed(slice(0, 2)) == diagonal | {(1, 0): True, (2, 0): False, (2, 1): True}


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_a_row_by_row_array_is_made_by_dense_attention_only(attention):
    """With all that would want one: windows, ALiBi, the backward pass."""
    model = msgspec.structs.replace(TOY, layers=(LayerKind(window=40), LayerKind()), alibi=True, attention_softcap=5.0)
    compute = ComputeConfig(attention=attention, attention_block=32)
    ids_BT = jax.ShapeDtypeStruct((2, 160), jnp.int32)

    def total(params, tokens_BT, segments_BT, positions_BT):
        return jnp.sum(apply(model, AXES, params, tokens_BT, segments_BT, positions_BT, compute=compute))

    with jax.set_mesh(mesh_of((1, 1))):
        text = jax.jit(jax.grad(total)).lower(abstract(model, AXES), ids_BT, ids_BT, ids_BT).as_text()
    assert ("160x160" in text) == (attention == "dense")
    assert "32x32x" in text or attention == "dense"
