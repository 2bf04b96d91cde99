import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from toy import MESHES, TOLERANCE, mesh_of

from model.config import ModelConfig
from model.layers import Embedding, Norm, normal_initializer


def rms_norm(eps, **fields):
    sizes = {"num_layers": 1, "dim": 4, "num_heads": 1, "num_kv_heads": 1, "head_dim": 4, "mlp_dim": 4}
    return Norm(ModelConfig(**sizes, norm_eps=eps, **fields))


def test_rms_norm_of_known_numbers():
    """(3, 4) has mean square 12.5: with eps 12.5 the root is 5."""
    params = {"params": {"scale": jnp.array([1.0, 10.0])}}
    out = rms_norm(12.5).apply(params, jnp.array([[[3.0, 4.0]]]))
    np.testing.assert_allclose(out, [[[0.6, 8.0]]], **TOLERANCE)


def test_rms_norm_of_bfloat16_computes_in_float32():
    """Squares of 257 numbers near one: a bfloat16 sum stops growing at 256."""
    x = jnp.full((1, 1, 1024), 1.0, jnp.bfloat16)
    out = rms_norm(1e-6).apply({"params": {"scale": jnp.ones(1024)}}, x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out.astype(jnp.float32), np.ones((1, 1, 1024)))


def test_embedding_looks_up_scales_and_transposes():
    whole = P(None, None, None)
    table = Embedding(3, 4, 2.0, P(None, None), whole, whole)
    params = {"params": {"weight": jnp.arange(12.0).reshape(3, 4)}}
    with jax.set_mesh(mesh_of((1, 1))):
        out = table.apply(params, jnp.array([[2, 0]]), jnp.dtype("float32"))
        logits = table.apply(params, jnp.array([[[1.0, 0.0, 0.0, 2.0]]]), method="decode")
    np.testing.assert_array_equal(out, [[[16, 18, 20, 22], [0, 2, 4, 6]]])
    np.testing.assert_array_equal(logits, [[[6, 18, 30]]])


def test_initial_numbers_are_the_same_on_every_mesh():
    drawn = []
    for shape in MESHES:
        with jax.set_mesh(mesh_of(shape)):
            draw = jax.jit(normal_initializer(0.5, P("tensor", "fsdp")), static_argnums=1)
            drawn.append(np.asarray(draw(jax.random.key(3), (64, 48))))
    for other in drawn[1:]:
        np.testing.assert_array_equal(other, drawn[0])
    assert abs(drawn[0].std() - 0.5) < 0.02
    assert drawn[0].dtype == np.float32
