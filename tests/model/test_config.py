import msgspec
import pytest
from toy import TOY

from model.config import ComputeConfig, LayerKind, ModelConfig, group_layers


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


def layers(text):
    """Layer kinds from letters: a sees everything, b a window of 2, c one of 3."""
    return tuple(LayerKind(window={"a": 0, "b": 2, "c": 3}[letter]) for letter in text)


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ("aaaa", [[(0, 1, 4)]]),
        ("aabaaba", [[(0, 3, 2), (1, 3, 2), (2, 3, 2)], [(6, 1, 1)]]),
        ("aaabbb", [[(0, 1, 3)], [(3, 1, 3)]]),
        ("abab", [[(0, 2, 2), (1, 2, 2)]]),
        ("abc", [[(0, 1, 1)], [(1, 1, 1)], [(2, 1, 1)]]),
    ],
)
def test_layers_are_grouped_into_few_stacks_that_cover_each_once(kinds, wanted):
    groups = group_layers(layers(kinds))
    assert [[(stack.first, stack.stride, stack.count) for stack in group] for group in groups] == wanted
    members = [layer for group in groups for stack in group for layer in stack.members]
    assert sorted(members) == list(range(len(kinds)))
    assert all(layers(kinds)[layer] == stack.kind for group in groups for stack in group for layer in stack.members)


def test_kinds_repeat_until_there_are_enough_layers():
    assert changed(num_layers=5, layers=[{}, {"window": 4}]).kinds == (
        LayerKind(), LayerKind(window=4), LayerKind(), LayerKind(window=4), LayerKind(),
    )  # fmt: skip


def test_experts_that_are_not_described_are_refused():
    with pytest.raises(ValueError, match=r"experts: true, but model\.experts is not given"):
        changed(layers=[{"experts": True}])
