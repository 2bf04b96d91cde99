import msgspec
import pytest
from toy import TOY

from model.config import ComputeConfig, ModelConfig


def changed(**fields):
    return msgspec.convert({**msgspec.to_builtins(TOY), **fields}, ModelConfig)


def test_kv_heads_that_do_not_divide_the_heads_are_refused_with_ones_that_do():
    with pytest.raises(ValueError, match=r"num_heads=6 is not a multiple of num_kv_heads=4; use one of \[1, 2, 3, 6\]"):
        changed(num_heads=6)


def test_an_odd_head_is_refused():
    with pytest.raises(
        ValueError, match=r"rotary embedding of 7 dimensions .* has no pairs; use an even number, e\.g\. head_dim=8"
    ):
        changed(head_dim=7)


@pytest.mark.parametrize("field", ["num_layers", "dim", "num_heads", "num_kv_heads", "mlp_dim", "norm_eps"])
def test_sizes_must_be_positive(field):
    with pytest.raises(msgspec.ValidationError, match=field):
        changed(**{field: 0})


def test_a_config_survives_a_checkpoint():
    assert msgspec.convert(msgspec.json.decode(msgspec.json.encode(TOY)), ModelConfig) == TOY


def test_compute_is_float32_unless_asked():
    assert ComputeConfig().jax_dtype == "float32"
    assert ComputeConfig(dtype="bfloat16").jax_dtype == "bfloat16"
