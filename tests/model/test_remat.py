"""The policy `attention` runs no kernel's forward pass a second time, told from the traced gradient.

Splash: from the compiled one, in `tests/launch/plan_ahead/test_kernels_ahead.py`.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from toy import AXES, mesh_of

from model.attention import Places
from model.attention_choice import Kernel
from model.attention_packed import attend_packed
from model.config import ComputeConfig
from model.remat import remat

LENGTH = 128


@pytest.fixture
def _pretend_cudnn(monkeypatch):
    """Traces cuDNN's call without a GPU; nothing is compiled."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_is_flash_attention", lambda *_, **__: None)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda *_: True)


def count_calls(policy, name, call):
    """How often the kernel's call occurs in the gradient of a layer that is attention and what surrounds it."""

    def run_layer(_stack, x_BTNH):
        ids = jnp.ones((2, LENGTH), jnp.int32)
        places = Places(ids, jnp.broadcast_to(jnp.arange(LENGTH), ids.shape))
        kernel = Kernel(name=name, block=128)
        return jnp.sin(
            attend_packed(x_BTNH * 2, x_BTNH * 3, x_BTNH * 4, places, places, kernel=kernel, scale=1.0, axes=AXES)
        )

    def total(x_BTNH):
        return jnp.sum(remat(run_layer, ComputeConfig(remat=policy))(None, x_BTNH).astype(jnp.float32))

    with jax.set_mesh(mesh_of((1, 1))):
        x_BTNH = jax.ShapeDtypeStruct((2, LENGTH, 4, 64), jnp.bfloat16)
        return len(re.findall(call, str(jax.make_jaxpr(jax.grad(total))(x_BTNH))))


@pytest.mark.usefixtures("_pretend_cudnn")
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("blockwise", r"\bscan\["),
        ("cudnn", r"\bdot_product_attention_[fb]wd\w*\["),
    ],
)
def test_a_kernel_runs_forwards_once_where_attention_is_kept(name, call):
    assert [count_calls(policy, name, call) for policy in ("none", "attention", "block")] == [2, 2, 3]
