"""The chunked head is the full head: values, gradients under any cotangent, meshes; and it is cheaper where it says."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import MESHES, TOLERANCE, TOY, assert_close_trees, assert_equal_trees, copy_to_host, mesh_of

from model.parallel import MeshConfig, make_mesh
from model.transformer import finish_logits
from train.chunked_loss import _split, chunk_positions, chunked_losses
from train.config import LossConfig
from train.loss import TokenLosses, full_losses

ROWS, LENGTH, DIM = 8, 6, 16
CHUNK = 3
TABLE = (("fsdp", "expert"), None, None), ("tensor", "fsdp")
"""How a run shards hidden states and a tied head; the other dimensions of a head of its own swap."""


class Case(NamedTuple):
    """A head and its loss."""

    tied: bool = True
    scale: float = 1.0
    cap: float = 0.0
    padding: int = 0
    z: float = 0.0
    smoothing: float = 0.0

    @property
    def model(self):
        return msgspec.structs.replace(
            TOY, vocab_size=32 - self.padding, vocab_padding=self.padding, dim=DIM, tied_head=self.tied,
            logit_scale=self.scale, final_softcap=self.cap,
        )  # fmt: skip

    def loss(self, chunk=CHUNK):
        return LossConfig(chunk=chunk, z_loss_weight=self.z, label_smoothing=self.smoothing)


BARE = Case()
TIED = Case(padding=5, smoothing=0.2)
EVERYTHING = Case(tied=False, scale=0.7, cap=3.0, padding=5, z=0.05, smoothing=0.1)
CASES = [(EVERYTHING, mesh) for mesh in MESHES] + [(BARE, (1, 1)), (TIED, (4, 2))]


class Inputs(NamedTuple):
    x_BKD: np.ndarray
    head: np.ndarray
    targets_BK: np.ndarray
    weight_BK: np.ndarray


def make_inputs(case, dtype=np.float32):
    """Rows that train 0 to 6 of 6 positions, so that devices have unequal numbers of them."""
    rng = np.random.default_rng(0)
    shape = (32, DIM) if case.tied else (DIM, 32)
    weight_BK = rng.choice(np.float32([0.25, 0.5, 1]), (ROWS, LENGTH))
    weight_BK *= np.arange(LENGTH)[None] < np.array([0, 6, 1, 2, 6, 0, 3, 1])[:, None]
    return Inputs(
        x_BKD=rng.normal(size=(ROWS, LENGTH, DIM)).astype(dtype),
        head=rng.normal(size=shape).astype(np.float32),
        targets_BK=rng.integers(0, case.model.vocab_size, (ROWS, LENGTH)).astype(np.int32),
        weight_BK=weight_BK,
    )


INPUTS = make_inputs(EVERYTHING)
OBJECTIVE_COTANGENT = np.float32(-0.37)
LOSS_COTANGENT = np.random.default_rng(1).normal(size=(ROWS, LENGTH)).astype(np.float32)


def full_head(case, x_BKD, head, targets_BK, weight_BK):
    """What `chunked_losses` must equal, by automatic differentiation of logits that are all there."""
    products_BKV = jnp.einsum("BKD,VD->BKV" if case.tied else "BKD,DV->BKV", x_BKD, head)
    logits_BKV = finish_logits(case.model, products_BKV)
    losses = full_losses(case.loss(), logits_BKV, targets_BK, weight_BK, vocab_size=case.model.vocab_size)
    return losses._replace(loss_BK=jnp.where(weight_BK != 0, losses.loss_BK, 0.0))


def chunked_head(case, x_BKD, head, targets_BK, weight_BK, chunk=CHUNK):
    return chunked_losses(case.loss(chunk), case.model, x_BKD, head, targets_BK, weight_BK)


def differentiate(losses_of, inputs, objective_cotangent, loss_cotangent_BK):
    """Losses, and gradients for hidden states and head: of the objective alone, and of everything."""
    x_BKD, head, targets_BK, weight_BK = inputs

    def losses(x_BKD, head):
        return losses_of(x_BKD, head, targets_BK, weight_BK)

    value, pull = jax.vjp(lambda *arrays: losses(*arrays).objective, x_BKD, head)
    both, pull_both = jax.vjp(losses, x_BKD, head)
    return {
        "losses": losses(x_BKD, head),
        "value": value,
        "of the objective": pull(objective_cotangent),
        "losses with gradients": both,
        "of both": pull_both(TokenLosses(objective_cotangent, loss_cotangent_BK)),
    }


def place(inputs, case, x_spec=TABLE[0], head_spec=TABLE[1]):
    specs = Inputs(x_spec, head_spec if case.tied else head_spec[::-1], x_spec[:2], x_spec[:2])
    return Inputs(*(jax.device_put(array, jax.P(*spec)) for array, spec in zip(inputs, specs, strict=True)))


def as_arrays(inputs=INPUTS):
    return Inputs(*map(jnp.asarray, inputs))


@functools.cache
def wanted_of(case):
    """The full head's results, on one device."""
    with jax.set_mesh(mesh_of((1, 1))):
        run = jax.jit(functools.partial(differentiate, functools.partial(full_head, case)))
        return copy_to_host(run(as_arrays(make_inputs(case)), OBJECTIVE_COTANGENT, LOSS_COTANGENT))


def run_chunked(case, inputs):
    run = jax.jit(functools.partial(differentiate, functools.partial(chunked_head, case)))
    cotangent_BK = jax.device_put(LOSS_COTANGENT, inputs.weight_BK.sharding)
    return run(inputs, OBJECTIVE_COTANGENT, cotangent_BK)


@pytest.mark.parametrize(("case", "mesh"), CASES, ids=str)
def test_the_chunked_head_is_the_full_head_under_any_cotangent(case, mesh):
    """A peer's hand-written gradient of hidden states ignored the cotangent for ten months: its tests summed losses.

    Here the cotangent of the objective is -0.37, and that of the cross-entropy another for each position.
    """
    with jax.set_mesh(mesh_of(mesh)):
        found = run_chunked(case, place(make_inputs(case), case))
    assert_close_trees(copy_to_host(found), wanted_of(case))


LAYOUTS = {
    "nothing is split": ((None, None, None), (None, None)),
    "positions are split too": (("fsdp", "expert", None), ("tensor", "fsdp")),
    "the head's width over all token axes": ((("fsdp", "expert"), None, None), ("tensor", ("fsdp", "expert"))),
    "the head's width over an axis that splits no tokens": (("fsdp", None, None), ("tensor", "expert")),
    "the vocabulary over two axes": (("fsdp", None, None), (("expert", "tensor"), "fsdp")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_gives_the_same_and_gradients_lie_as_their_arrays_do(layout):
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))):
        inputs = place(make_inputs(TIED), TIED, *LAYOUTS[layout])
        found = run_chunked(TIED, inputs)
        for gradients in (found["of the objective"], found["of both"]):
            for gradient, array in zip(gradients, (inputs.x_BKD, inputs.head), strict=True):
                assert gradient.sharding.is_equivalent_to(array.sharding, array.ndim)
    assert_close_trees(copy_to_host(found), wanted_of(TIED))


@pytest.mark.parametrize("chunk", [1, 5, 16, 25, 48, 1000])
def test_the_size_of_a_chunk_changes_no_result(chunk, one_device):
    """19 of 48 positions are trained: last chunks part filled and full, chunks never visited, one chunk for all."""
    assert (INPUTS.weight_BK > 0).sum() == 19
    run = functools.partial(chunked_head, EVERYTHING, chunk=chunk)
    found = jax.jit(functools.partial(differentiate, run))(as_arrays(), OBJECTIVE_COTANGENT, LOSS_COTANGENT)
    assert_close_trees(copy_to_host(found), wanted_of(EVERYTHING))


def objective(case, targets_BK, weight_BK, x_BKD, head, chunk=CHUNK):
    targets_BK, weight_BK = jnp.asarray(targets_BK), jnp.asarray(weight_BK)
    return chunked_head(case, x_BKD, head, targets_BK, weight_BK, chunk=chunk).objective


def test_the_gradient_of_c_times_the_loss_is_c_times_the_gradient(one_device):
    """To the bit, for c a power of two: of hidden states and head alike."""
    x_BKD, head, targets_BK, weight_BK = as_arrays()

    def gradient(c):
        def scaled(x_BKD, head):
            return c * objective(EVERYTHING, targets_BK, weight_BK, x_BKD, head)

        return jax.grad(scaled, argnums=(0, 1))(x_BKD, head)

    run = jax.jit(gradient)
    once, times = run(jnp.float32(1)), run(jnp.float32(-0.125))
    assert all(np.abs(leaf).max() > 0 for leaf in once)
    assert_equal_trees(times, jax.tree.map(lambda leaf: -0.125 * leaf, once))


def test_a_gradient_for_weights_is_refused_not_wrong(one_device):
    """At positions without weight it would be their loss, which nobody computed."""
    x_BKD, head, targets_BK, weight_BK = as_arrays()
    with pytest.raises(ValueError, match=r"no gradient for loss weights.*head=\"full\""):
        jax.grad(lambda weight_BK: objective(BARE, targets_BK, weight_BK, x_BKD, head.T))(weight_BK)


def test_positions_without_weight_are_not_computed(one_device):
    """Hidden states that are not a number would show in any product: 16 positions, one chunk, are all that is done."""
    weight_BK = np.zeros((ROWS, LENGTH), np.float32)
    weight_BK[::2, :4] = 1.0
    clean, head, *_ = as_arrays()
    spoiled = jnp.where(weight_BK[..., None] > 0, clean, jnp.nan)
    run = jax.jit(
        jax.value_and_grad(
            functools.partial(objective, EVERYTHING, INPUTS.targets_BK, weight_BK, chunk=16), argnums=(0, 1)
        )
    )
    assert_equal_trees(run(spoiled, head), run(clean, head))


def test_rows_without_any_trained_position_cost_and_give_nothing(one_device):
    nothing_BK = np.zeros((ROWS, LENGTH), np.float32)
    run = functools.partial(objective, EVERYTHING, INPUTS.targets_BK, nothing_BK)
    found = jax.jit(jax.value_and_grad(run, argnums=(0, 1)))(*as_arrays()[:2])
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(found))


def test_bfloat16_rounds_operands_and_the_gradient_of_hidden_states_and_nothing_else(one_device):
    """The head's gradient is float32's of the rounded operands; that of hidden states is it, rounded once."""
    rounded = jnp.asarray(INPUTS.x_BKD).astype(jnp.bfloat16)
    targets = (INPUTS.targets_BK, INPUTS.weight_BK)
    gradient = jax.jit(jax.value_and_grad(functools.partial(objective, EVERYTHING, *targets), argnums=(0, 1)))
    value, (grad_x, grad_head) = gradient(rounded, jnp.asarray(INPUTS.head))
    assert (grad_x.dtype, grad_head.dtype, value.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    head = jnp.asarray(INPUTS.head).astype(jnp.bfloat16).astype(jnp.float32)
    exact, (exact_x, exact_head) = gradient(rounded.astype(jnp.float32), head)
    np.testing.assert_allclose(value, exact, **TOLERANCE)
    np.testing.assert_allclose(grad_head, exact_head, **TOLERANCE)
    error = np.abs(grad_x.astype(jnp.float32) - exact_x)
    assert np.all(error <= 2.0**-8 * np.abs(exact_x) + TOLERANCE["atol"]), "bfloat16 keeps 8 bits"


def equations(jaxpr):
    """Every equation of a program, those of its loops and calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda leaf: hasattr(leaf, "eqns")):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def program(function, *arguments):
    return list(equations(jax.make_jaxpr(function)(*arguments).jaxpr))


def products(function, *arguments):
    return sum(equation.primitive.name == "dot_general" for equation in program(function, *arguments))


def test_the_head_is_passed_once_and_only_for_what_is_wanted(one_device):
    """Logits, then a product for each gradient: three. Two where the head is frozen, as under adapters; one for values.

    Only a cotangent of the cross-entropies themselves, which training has none of, costs three more.
    """
    x_BKD, head, targets_BK, weight_BK = as_arrays()
    run = functools.partial(objective, EVERYTHING, targets_BK, weight_BK)

    def of_losses(x_BKD, head):
        losses = chunked_head(EVERYTHING, x_BKD, head, targets_BK, weight_BK)
        return losses.objective + jnp.sum(LOSS_COTANGENT * losses.loss_BK)

    def with_losses_beside(x_BKD, head):
        losses = chunked_head(EVERYTHING, x_BKD, head, targets_BK, weight_BK)
        return losses.objective, jnp.sum(losses.loss_BK)

    assert products(run, x_BKD, head) == 1
    assert products(jax.grad(run), x_BKD, head) == 2
    assert products(jax.grad(run, argnums=1), x_BKD, head) == 2
    assert products(jax.grad(run, argnums=(0, 1)), x_BKD, head) == 3
    assert products(jax.grad(with_losses_beside, argnums=(0, 1), has_aux=True), x_BKD, head) == 3
    assert products(jax.jit(jax.grad(run, argnums=(0, 1))), x_BKD, head) == 3
    assert products(jax.grad(of_losses, argnums=(0, 1)), x_BKD, head) == 6


def widest(function, *arguments):
    """The most scalars in any array of a program that has a dimension of the vocabulary but is not like the head."""
    arrays = [variable.aval for equation in program(function, *arguments) for variable in equation.outvars]
    return max(math.prod(a.shape) for a in arrays if 32 in a.shape and DIM not in a.shape)


def test_there_are_never_more_logits_than_a_chunk_s(one_device):
    x_BKD, head, targets_BK, weight_BK = as_arrays()
    run = functools.partial(objective, EVERYTHING, targets_BK, weight_BK)
    assert widest(jax.grad(run, argnums=(0, 1)), x_BKD, head) == CHUNK * 32
    gradient = jax.grad(lambda *both: full_head(EVERYTHING, *both, targets_BK, weight_BK).objective, argnums=(0, 1))
    assert widest(gradient, x_BKD, head) == ROWS * LENGTH * 32, "or this test would find nothing"


@pytest.mark.parametrize(
    ("positions", "most", "wanted"),
    [
        (1000, 512, (504, 2)),
        (520, 512, (264, 2)),
        (512, 512, (512, 1)),
        (3, 512, (3, 1)),
        (48, 5, (5, 10)),
        (7, 1, (1, 7)),
    ],
)
def test_chunks_are_even(positions, most, wanted):
    assert _split(positions, most) == wanted


@given(st.integers(1, 5000), st.integers(1, 600))
def test_chunks_hold_all_positions_and_none_is_too_large_or_empty(positions, most):
    size, chunks = _split(positions, most)
    assert size <= most and (chunks - 1) * size < positions <= chunks * size


@pytest.mark.parametrize(
    ("chunk", "vocabulary", "device_kind", "wanted"),
    [
        (None, 262_144, "cpu", 128),
        (None, 32_768, "cpu", 512),
        (None, 4096, "cpu", 4096),
        (None, 262_144, "NVIDIA H100 80GB HBM3", 2048),
        (None, 4096, "TPU v5 lite", 2048),
        (100, 262_144, "cpu", 100),
        (100, 262_144, "TPU v5 lite", 100),
    ],
)
def test_the_size_of_a_chunk_suits_the_platform_unless_it_is_given(chunk, vocabulary, device_kind, wanted):
    assert chunk_positions(LossConfig(chunk=chunk), vocabulary, device_kind) == wanted
