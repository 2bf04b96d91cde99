"""Which attention kernel is chosen, and what is said where the wanted one cannot serve the model."""

import jax
import msgspec
import pytest
from toy import AXES, TOY

from model.attention_choice import CPU_BLOCKWISE_LENGTH, choose_attention, describe_attention
from model.config import ComputeConfig
from model.transformer import abstract, apply

MODEL = msgspec.structs.replace(TOY, head_dim=64)
BFLOAT16 = ComputeConfig(dtype="bfloat16")


def choose(platform, *, model=None, row_length=2048, compute=BFLOAT16, **settings):
    model = msgspec.structs.replace(MODEL, **(model or {}))
    compute = msgspec.structs.replace(compute, **settings)
    return choose_attention(model, compute, platform=platform, row_length=row_length)


@pytest.mark.parametrize(
    ("platform", "row_length", "name"),
    [
        ("tpu", 16, "splash"), ("gpu", 16, "cudnn"), ("cpu", 128, "dense"),
        ("cpu", CPU_BLOCKWISE_LENGTH - 1, "dense"), ("cpu", CPU_BLOCKWISE_LENGTH, "blockwise"),
    ],
)  # fmt: skip
def test_auto_is_the_fastest_of_the_platform(platform, row_length, name):
    assert choose(platform, row_length=row_length).name == name


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("name", ["dense", "blockwise"])
def test_what_is_asked_for_is_taken_and_these_two_serve_every_model(platform, name):
    hard = {"alibi": True, "attention_softcap": 50.0, "head_dim": 6}
    kernel = choose(platform, model=hard, row_length=33, attention=name, compute=ComputeConfig())
    assert kernel.name == name and name in describe_attention(kernel)


@pytest.mark.parametrize(
    ("platform", "model", "settings", "reason"),
    [
        ("tpu", {"alibi": True}, {}, "auto means splash on tpu, which cannot serve .* it has no ALiBi"),
        ("tpu", {}, {"attention_block": 192}, "multiples of 128, compute.attention_block=192 is none"),
        ("tpu", {}, {"attention": "cudnn"}, "=cudnn cannot serve .* it runs on gpu only, and the devices are tpu"),
        ("cpu", {}, {"attention": "splash"}, "=splash cannot serve .* it runs on tpu only, and the devices are cpu"),
        ("gpu", {"attention_softcap": 50.0}, {}, "auto means cudnn on gpu, .* no soft-cap .*attention_softcap=50"),
        ("gpu", {"alibi": True}, {}, "no ALiBi"),
        ("gpu", {}, {"dtype": "float32"}, "no float32 .compute.dtype=bfloat16 would do"),
        ("gpu", {"head_dim": 100}, {}, "model.head_dim=100 is no multiple of 8 up to 256"),
        ("gpu", {"head_dim": 264}, {}, "model.head_dim=264 is no multiple of 8 up to 256"),
    ],
)  # fmt: skip
def test_a_kernel_that_is_missing_is_an_error_and_not_the_unfused_one(platform, model, settings, reason):
    """A peer's attention falls back to an unfused kernel with a warning, at half of the speed, for months."""
    with pytest.raises(ValueError, match=f"{reason}.*; compute.attention=blockwise allows the slower one"):
        choose(platform, model=model, **settings)


@pytest.mark.parametrize(("compute", "name"), [(BFLOAT16, "cudnn"), (ComputeConfig(), "blockwise")])
def test_any_allows_the_slower_one_and_takes_the_fast_one_where_it_can(compute, name):
    assert choose("gpu", compute=compute, attention="any").name == name


def test_all_reasons_are_said_at_once():
    with pytest.raises(ValueError, match=r"no float32 .*; it has no soft-cap .*; rows of 33 positions are odd"):
        choose("gpu", model={"attention_softcap": 1.0}, row_length=33, dtype="float32")


def test_blocks_are_those_of_the_recipe_or_of_the_device():
    sizes = [choose("cpu").block, choose("tpu").block, choose("cpu", attention_block=64).block]
    assert sizes == [128, 512, 64]


def test_a_model_asks_before_it_computes(one_device):
    """Library calls have no command line that would have asked."""
    ids_BT = jax.ShapeDtypeStruct((1, 16), "int32")

    def run(tokens_BT):
        return apply(TOY, AXES, abstract(TOY, AXES), tokens_BT, tokens_BT, tokens_BT, compute=compute)

    compute = ComputeConfig(attention="splash")
    with pytest.raises(ValueError, match="it runs on tpu only, and the devices are cpu"):
        jax.eval_shape(run, ids_BT)
