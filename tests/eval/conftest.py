import functools

import jax
import pytest
from toy import mesh_of

from eval.engine import Model
from model.config import ComputeConfig, ModelConfig
from model.parallel import AxisRules
from model.transformer import init


@pytest.fixture(scope="session")
def make_model():
    """Makes a model of two layers on a mesh; the same parameters on every one."""

    def make(mesh, axes):
        cfg = ModelConfig(
            vocab_size=64,
            num_layers=2,
            dim=16,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            mlp_dim=32,
            tied_head=False,
        )
        with jax.set_mesh(mesh):
            params = jax.jit(functools.partial(init, cfg, axes))(jax.random.key(0))
        return Model(cfg, axes, params, ComputeConfig())

    return make


@pytest.fixture(scope="session")
def made_model(make_model):
    return make_model(mesh_of((1, 1)), AxisRules())


@pytest.fixture
def tiny_model(one_device, made_model):
    return made_model
