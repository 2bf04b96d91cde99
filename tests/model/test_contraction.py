"""The hand-written gradient against JAX's own, with cotangents that are not all one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from toy import TOLERANCE, copy_to_host, mesh_of

from model.contraction import contract

SIZES = {"B": 8, "T": 3, "S": 3, "D": 16, "N": 8, "K": 4, "G": 2, "H": 4, "F": 24, "V": 32}
AXES = {"B": "fsdp", "N": "tensor", "K": "tensor", "F": "tensor", "V": "tensor"}
WEIGHT_AXES = {**AXES, "D": "fsdp"}
WEIGHTS = ("DNH", "NHD", "DF", "FD", "DV", "VD")
EQUATIONS = (
    "BTD,DNH->BTNH", "BTNH,NHD->BTD", "BTD,DF->BTF", "BTF,FD->BTD", "BTD,DV->BTV", "BTD,VD->BTV",
    "BKGTH,BKHS->BKGTS", "BKGTS,BKHS->BKGTH",
)  # fmt: skip


def operands(equation, dtype):
    """x, w and a cotangent, of random numbers."""
    rng = np.random.default_rng(0)
    terms = equation.replace("->", ",").split(",")
    return [jnp.asarray(rng.normal(size=[SIZES[letter] for letter in term]), dtype) for term in terms]


def specs(equation):
    terms = equation.replace("->", ",").split(",")
    return [P(*((WEIGHT_AXES if term in WEIGHTS else AXES).get(letter) for letter in term)) for term in terms]


def with_gradients(function, x, w, cotangent):
    out, pull = jax.vjp(function, x, w)
    return out, *pull(cotangent.astype(out.dtype))


@pytest.mark.parametrize("equation", EQUATIONS)
def test_value_and_gradients_are_the_einsum_s(equation, one_device):
    x, w, cotangent = operands(equation, jnp.float32)
    out_spec = P(*(None for _ in equation.split("->")[1]))
    given = with_gradients(lambda x, w: contract(equation, x, w, out_spec=out_spec), x, w, cotangent)
    wanted = with_gradients(lambda x, w: jnp.einsum(equation, x, w), x, w, cotangent)
    for a, b in zip(given, wanted, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("equation", EQUATIONS)
def test_gradients_of_sharded_operands_are_sharded_alike(equation):
    with jax.set_mesh(mesh_of((2, 4))):
        arrays = copy_to_host(operands(equation, jnp.float32))
        x, w, cotangent = (jax.device_put(array, spec) for array, spec in zip(arrays, specs(equation), strict=True))

        def run(x, w, cotangent):
            return with_gradients(lambda x, w: contract(equation, x, w, out_spec=specs(equation)[2]), x, w, cotangent)

        out, grad_x, grad_w = jax.jit(run)(x, w, cotangent)
    assert (grad_x.sharding.spec, grad_w.sharding.spec) == (x.sharding.spec, w.sharding.spec)
    with jax.set_mesh(mesh_of((1, 1))):
        wanted = with_gradients(lambda x, w: jnp.einsum(equation, x, w), *map(jnp.asarray, arrays))
    for a, b in zip((out, grad_x, grad_w), wanted, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("equation", ["BTD,VD->BTV", "BKGTH,BKHS->BKGTS"])
def test_bfloat16_operands_are_accumulated_and_pulled_back_in_float32(equation, one_device):
    x, w, cotangent = operands(equation, jnp.bfloat16)
    out_spec = P(*(None for _ in equation.split("->")[1]))
    given = with_gradients(lambda x, w: contract(equation, x, w, out_spec=out_spec, dtype=jnp.float32), x, w, cotangent)
    wide = [array.astype(jnp.float32) for array in (x, w, cotangent)]
    wanted = with_gradients(lambda x, w: jnp.einsum(equation, x, w), *wide)
    assert [array.dtype for array in given] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
    np.testing.assert_allclose(given[0], wanted[0], **TOLERANCE)
    for a, b in zip(given[1:], wanted[1:], strict=True):
        np.testing.assert_array_equal(a, b.astype(jnp.bfloat16))
