"""One update is the same number with every attention kernel, on one device and on eight."""

import dataclasses
import functools

import jax
import msgspec
import pytest
from toy import AXES, LANGUAGES, TOY, assert_close_trees, copy_to_host, lay_out, make_examples, mesh_of, most_trained

from model.config import ComputeConfig, LayerKind
from model.parallel import MeshConfig
from model.transformer import init
from train.hosts import put_batch
from train.step import StepSpec, mean_gradient

EXAMPLES = make_examples(80)
LENGTH = 80
BATCH = lay_out([EXAMPLES[i : i + 10] for i in range(0, 80, 10)], LENGTH)
MODEL = msgspec.structs.replace(
    TOY,
    layers=(LayerKind(window=3), LayerKind(), LayerKind(rope=None)),
    num_layers=3,
    attention_softcap=1.0,
    alibi=True,
)
SPEC = StepSpec(
    model=MODEL, axes=AXES, compute=ComputeConfig(attention="dense"), num_languages=len(LANGUAGES),
    most_trained=-(-most_trained(BATCH) // 4) * 4,
)  # fmt: skip


def gradient(mesh, *, microbatches=1, **compute):
    """The step's gradient and its sums, of the same parameters on every mesh."""
    spec = dataclasses.replace(SPEC, compute=ComputeConfig(**compute), microbatches=microbatches)
    with jax.set_mesh(mesh_of(mesh)):
        params = jax.jit(init, static_argnums=(0, 1))(MODEL, AXES, jax.random.key(0))
        batch = put_batch(BATCH, AXES.spec("batch", None))
        return copy_to_host(jax.jit(functools.partial(mean_gradient, spec))(params, batch))


@pytest.fixture(scope="module")
def dense():
    return gradient((1, 1), attention="dense")


@pytest.mark.parametrize(
    ("mesh", "how"),
    [
        ((1, 1), {}),
        pytest.param((2, 4), {"remat": "block", "microbatches": 2}, marks=pytest.mark.slow),
        (MeshConfig(fsdp=2, sequence=4), {"remat": "attention"}),
    ],
    ids=["1-device", "8-devices", "split-rows"],
)
def test_attention_in_blocks_changes_no_result(dense, mesh, how):
    """Five blocks a row; windows, soft-cap, ALiBi, grouped queries, examples across the borders of blocks."""
    assert_close_trees(gradient(mesh, attention="blockwise", attention_block=16, **how), dense)


def test_the_rows_have_padding_and_examples_across_the_borders_of_blocks():
    segments_BT = BATCH.segments_BT
    assert (segments_BT[:, -1] == 0).all() and segments_BT.max() == 10
    assert (segments_BT[:, 15] == segments_BT[:, 16]).sum() >= 4
