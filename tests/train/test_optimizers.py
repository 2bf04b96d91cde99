"""Optimizers of stacked, split parameters: every layer's matrix is updated as if it were an array of its own."""

import functools

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest
from toy import AXES, TOY, assert_close_trees, copy_to_host

from model.config import ExpertsConfig, LayerKind
from model.parallel import MeshConfig, make_mesh
from model.transformer import abstract
from train.config import OptimConfig
from train.matrices import is_hidden_matrix, layout_of
from train.muon import COEFFICIENTS, UPDATE_RMS
from train.optim import make_optimizer
from train.paths import list_paths, map_with_path

MODEL = msgspec.structs.replace(
    TOY, num_layers=4, qkv_bias=True, qk_norm="full", tied_head=False, norm="layer", norm_bias=True,
    layers=(LayerKind(), LayerKind(experts=True)), experts=ExpertsConfig(num_experts=4, per_token=2, dim=8),
)  # fmt: skip
"""Two stacks of two layers, one with experts; biases, and norms over all heads."""
UPDATES, RATE = 3, 0.1


def mesh_of(fsdp, expert, tensor):
    config = MeshConfig(fsdp=fsdp, expert=expert, tensor=tensor)
    return make_mesh(config, jax.devices()[: fsdp * expert * tensor])


@functools.cache
def host_values():
    """Parameters and the gradients of every update, in host memory."""
    with jax.set_mesh(mesh_of(1, 1, 1)):
        shapes = abstract(MODEL, AXES)
    rng = np.random.default_rng(0)
    draw = functools.partial(jax.tree.map, lambda leaf: rng.normal(size=leaf.shape).astype(np.float32))
    return draw(shapes), [draw(shapes) for _ in range(UPDATES)]


def make_config(name, **options):
    options |= {"min_dim_size_to_factor": 8} if name == "adafactor" else {}
    return OptimConfig(
        name=name, learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=1e9, **options
    )  # fmt: skip


@functools.cache
def update_all(name, mesh=(1, 1, 1), **options):
    """The parameters after every update, and the optimizer's state, on a mesh."""
    with jax.set_mesh(mesh_of(*mesh)), jax.numpy_dtype_promotion("standard"):
        params, gradients = host_values()
        specs = jax.tree.map(lambda leaf: leaf.sharding.spec, abstract(MODEL, AXES))
        params, *gradients = (jax.tree.map(jax.device_put, tree, specs) for tree in (params, *gradients))
        tx = make_optimizer(make_config(name, **options), UPDATES)
        state = jax.jit(tx.init)(params)
        like = jax.eval_shape(tx.init, params)

        @jax.jit
        def step(params, state, gradient):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        for gradient in gradients:
            params, state = step(params, state, gradient)
        assert jax.tree.map(lambda leaf: leaf.sharding.spec, params) == specs
        for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
            assert (leaf.shape, leaf.dtype) == (wanted.shape, wanted.dtype)
            spec = wanted.sharding.spec if wanted.sharding else jax.P()
            assert leaf.sharding.is_equivalent_to(jax.NamedSharding(jax.sharding.get_mesh(), spec), leaf.ndim)
        assert step._cache_size() == 1, "a state that changes its form with an update compiles every step twice"
        return copy_to_host(params), state


def test_every_parameter_is_known_as_matrices_or_vectors():
    params, _ = host_values()
    shapes = {}
    map_with_path(lambda path, x: shapes.update({path: layout_of(path, x.ndim).sizes(x.shape)}), params)
    assert shapes["layers/0/attention/query/weight"] == (2, 16, 32)
    assert shapes["layers/0/attention/out/weight"] == (2, 32, 16)
    assert shapes["layers/0/attention/key/bias"] == (2, 16)
    assert shapes["layers/0/attention/query_norm/scale"] == (2, 32)
    assert shapes["layers/0/mlp/down/weight"] == (2, 24, 16)
    assert shapes["layers/1/experts/router"] == (2, 16, 4)
    assert shapes["layers/1/experts/down"] == (2, 4, 8, 16)
    assert (shapes["embedding/weight"], shapes["final_norm/scale"]) == ((32, 16), (16,))
    assert len(shapes) == len(list_paths(params)) > 30


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        *((name, (2, 2, 2)) for name in ("adafactor", "lion", "muon")),
        *(pytest.param(name, (2, 1, 4), marks=pytest.mark.slow) for name in ("adafactor", "lion", "muon")),
        *(pytest.param(name, (8, 1, 1), marks=pytest.mark.slow) for name in ("adafactor", "muon")),
    ],
    ids=str,
)
def test_the_mesh_changes_no_update(name, mesh):
    assert_close_trees(update_all(name, mesh)[0], update_all(name)[0])


def matrices_of(tree):
    """Every separate matrix or vector of a tree of host arrays, by path and place."""
    found = {}

    def cut(path, x):
        layout = layout_of(path, x.ndim)
        sizes = layout.sizes(x.shape)
        for i, matrix in enumerate(x.reshape(-1, *sizes[layout.separate :])):
            found[f"{path}:{i}"] = matrix

    map_with_path(cut, tree)
    return found


def is_hidden(key):
    """Whether a matrix's name in `matrices_of` is that of one that Muon updates."""
    return is_hidden_matrix(key.partition(":")[0])


def reference(tx, keep):
    """Parameters after every update of those matrices that are kept, each an array of its own on one device."""
    params, gradients = (matrices_of(host_values()[0]), [matrices_of(each) for each in host_values()[1]])
    params, *gradients = ({key: tree[key] for key in tree if keep(key)} for tree in (params, *gradients))
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):
        for gradient in gradients:
            updates, state = jax.jit(tx.update)(gradient, state, params)
            params = optax.apply_updates(params, updates)
    return params


@pytest.mark.slow
def test_adafactor_factors_each_layer_s_matrix_and_never_over_layers():
    """As `optax.adafactor` of a model whose layers are not stacked: its factors, its clipping by matrix."""
    tx = optax.adafactor(RATE, min_dim_size_to_factor=8, multiply_by_parameter_scale=True)
    wanted = reference(tx, lambda key: True)
    given = matrices_of(update_all("adafactor", multiply_by_parameter_scale=True)[0])
    assert_close_trees(given, wanted)
    state = update_all("adafactor")[1][1][0]["layers"]["0"]["attention"]["query"]["weight"][0]
    assert (state.v_row.shape, state.v_col.shape, state.v.shape) == ((2, 16), (2, 32), (2, 1))


def test_adafactor_s_decay_follows_the_learning_rate():
    """optax's own takes weight_decay x the parameter at every step, whatever the rate: 0.1 would end a model."""
    params = {"head": host_values()[0]["head"]}
    tx = make_optimizer(make_config("adafactor", weight_decay=0.5), UPDATES)
    with jax.numpy_dtype_promotion("standard"):
        updates = tx.update(jax.tree.map(np.zeros_like, params), tx.init(params), params)[0]
    taken = updates["head"]["weight"] / params["head"]["weight"]
    np.testing.assert_allclose(taken, np.full_like(taken, -RATE * 0.5), rtol=1e-4)


def loop_muon(gradients):
    """The last update's direction of one matrix, in NumPy, by the formula of the source."""
    mu, beta, (a, b, c) = np.zeros_like(gradients[0]), 0.95, COEFFICIENTS
    for t, g in enumerate(gradients, start=1):
        mu = beta * mu + (1 - beta) * g
        x = beta * mu / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return UPDATE_RMS * np.sqrt(max(x.shape)) * x


def test_muon_orthogonalises_each_layer_s_matrix_with_heads_as_columns():
    """Layers and experts apart, (D, N, H) as (D, N x H): three updates against a loop over matrices in NumPy."""
    last, before = (matrices_of(each) for each in (update_all("muon")[0], host_values()[0]))
    gradients = [matrices_of(each) for each in host_values()[1]]
    hidden = [key for key in last if is_hidden(key)]
    assert len(hidden) == 2 * (7 + 4 + 1 + 3 * 4)
    for key in hidden:
        moved = sum(loop_muon([g[key].astype(np.float64) for g in gradients[: n + 1]]) for n in range(UPDATES))
        np.testing.assert_allclose(last[key], before[key] - RATE * moved, rtol=1e-4, atol=1e-5)
    query = loop_muon([g["layers/0/attention/query/weight:0"] for g in gradients])
    singular = np.linalg.svd(query / (UPDATE_RMS * np.sqrt(32)), compute_uv=False)
    assert 0.6 < singular.min() < singular.max() < 1.3


def test_muon_is_optax_s_on_the_matrices_of_layers_that_are_not_stacked():
    wanted = reference(optax.contrib.muon(RATE, consistent_rms=UPDATE_RMS), is_hidden)
    given = {key: matrix for key, matrix in matrices_of(update_all("muon")[0]).items() if is_hidden(key)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), given, wanted)


def test_muon_leaves_embedding_head_norms_and_biases_to_adamw():
    def others(tree):
        return {key: x for key, x in matrices_of(tree).items() if not is_hidden(key)}

    given, adamw = others(update_all("muon")[0]), others(update_all("adamw")[0])
    assert {"embedding/weight:0", "head/weight:0", "final_norm/scale:0", "layers/0/attention/query/bias:1"} <= set(
        given
    )
    assert_close_trees(given, adamw)


def test_lion_moves_every_entry_by_the_rate():
    params, gradient = ({"head": tree["head"]} for tree in (host_values()[0], host_values()[1][0]))
    tx = make_optimizer(make_config("lion"), UPDATES)
    with jax.numpy_dtype_promotion("standard"):
        updates = tx.update(gradient, tx.init(params), params)[0]
    assert_close_trees(updates, jax.tree.map(lambda g: -RATE * np.sign(g), gradient))


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_first_moments_of_two_bytes_leave_second_ones_and_updates_float32(name):
    params, gradients = host_values()
    tx = make_optimizer(make_config(name, mu_dtype="bfloat16"), UPDATES)
    with jax.set_mesh(mesh_of(1, 1, 1)), jax.numpy_dtype_promotion("standard"):
        updates, state = jax.eval_shape(lambda p, g: tx.update(g, tx.init(p), p), params, gradients[0])
    sizes = {dtype: 0 for dtype in ("bfloat16", "float32", "int32")}
    for leaf in jax.tree.leaves(state):
        sizes[str(leaf.dtype)] += leaf.size
    of_matrices = sum(matrix.size for key, matrix in matrices_of(params).items() if is_hidden(key))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sizes["bfloat16"] == count
    assert sizes["float32"] == {"adamw": count, "lion": 0, "muon": count - of_matrices}[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "lion", "eps": 1e-6}, "eps=1e-06 is not read by optim.name=lion; leave it out, or use adamw, muon"),
        ({"name": "adafactor", "b1": 0.9}, "optim.b1=0.9 is not read by optim.name=adafactor"),
        ({"name": "adafactor", "mu_dtype": "float32"}, "optim.mu_dtype=float32 is not read by optim.name=adafactor"),
        ({"momentum": 0.9}, "optim.momentum=0.9 is not read by optim.name=adamw; leave it out, or use muon"),
        ({"lr_scheduler_type": "constant", "final_lr_ratio": 0.0}, "optim.final_lr_ratio=0.0 is not read by"),
        ({"decay_steps": 3}, "optim.decay_steps=3 is not read by optim.lr_scheduler_type=cosine"),
        ({"weight_decay_params": ("*",)}, "optim.weight_decay_params is given, but optim.weight_decay is 0"),
    ],
)  # fmt: skip
def test_an_option_that_nothing_would_read_is_refused(fields, message):
    with pytest.raises(ValueError, match=message.replace("*", r"\*")):
        OptimConfig(learning_rate=1.0, **fields)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon"])
def test_a_resolved_config_holds_every_number_in_use_and_reads_back_as_itself(name):
    config = OptimConfig(name=name, learning_rate=1.0)
    assert all(value is not None for value in config.options.values())
    assert msgspec.convert(msgspec.to_builtins(config), OptimConfig) == config
