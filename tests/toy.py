"""A tiny model, tiny batches of known content, and the one tolerance of the numerical tests."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import optax

from data.batch import Batch, Role
from model.attention import Places, visible
from model.config import ModelConfig
from model.parallel import MESH_AXES, AxisRules, MeshConfig, make_mesh
from train.config import OptimConfig
from train.state import TrainState, abstract_state

TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
"""Between two float32 computations of the same number that add in another order. Never relaxed: a change that
needs more than this changes the result."""

TOY = ModelConfig(
    vocab_size=32, num_layers=2, dim=16, num_heads=8, num_kv_heads=4, head_dim=4, mlp_dim=24, embedding_scale=4.0
)
"""Divisible by every mesh of eight devices below; head width times heads differs from the model's width."""

AXES = AxisRules()
MESHES = ((1, 1), (8, 1), (4, 2), (2, 4))
LONG_MESHES = (
    MeshConfig(data=2, fsdp=4), MeshConfig(fsdp=1, sequence=8), MeshConfig(fsdp=2, sequence=4),
    MeshConfig(data=2, fsdp=1, sequence=2, tensor=2),
)  # fmt: skip
"""With replicas, and with the positions of a row on several devices."""
ROW_LENGTH = 16
LANGUAGES = ("", "ar", "fr", "sw")

# Adam divides by |gradient| + eps: with the usual 1e-8 the rounding of a gradient that is truly zero decides
# the sign of a whole update, and updated parameters can be compared to no tolerance at all.
OPTIM = OptimConfig(learning_rate=0.01, eps=1e-3, weight_decay=0.1, warmup_steps=2)


class Example(NamedTuple):
    """n ids, the weight of each as a target, and a language id."""

    ids: list[int]
    weights: list[float]
    language: int


def mesh_of(shape: tuple[int, int] | MeshConfig) -> jax.sharding.Mesh:
    """A mesh of (fsdp, tensor), or of a config with all its sizes, over the first devices."""
    config = shape if isinstance(shape, MeshConfig) else MeshConfig(fsdp=shape[0], tensor=shape[1])
    return make_mesh(config, jax.devices()[: math.prod(config.size(name) for name in MESH_AXES)])


def make_examples(count: int, *, seed: int = 0) -> list[Example]:
    """Examples of 3 to 9 ids whose counts of trained tokens, and weights, differ."""
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(count):
        length = int(rng.integers(3, 10))
        trained = int(rng.integers(1, length))
        weights = [0.0] * (length - trained) + rng.choice([0.25, 0.5, 1.0], trained).tolist()
        ids = rng.integers(3, TOY.vocab_size, length).tolist()
        examples.append(Example(ids, weights, int(rng.integers(1, len(LANGUAGES)))))
    return examples


def lay_out(rows: Sequence[Sequence[Example]], length: int = ROW_LENGTH) -> Batch:
    """The batch of these rows, laid out one position after the other as `data.batch.Batch` describes."""
    fields = {name: np.zeros((len(rows), length), np.int32) for name in Batch._fields}
    fields["loss_weight_BT"] = np.zeros((len(rows), length), np.float32)
    for row, examples in enumerate(rows):
        at = 0
        for segment, example in enumerate(examples, 1):
            for position in range(len(example.ids) - 1):
                fields["tokens_BT"][row, at] = example.ids[position]
                fields["targets_BT"][row, at] = example.ids[position + 1]
                fields["loss_weight_BT"][row, at] = example.weights[position + 1]
                fields["segments_BT"][row, at] = segment
                fields["positions_BT"][row, at] = position
                fields["language_BT"][row, at] = example.language
                fields["role_BT"][row, at] = Role.ASSISTANT if example.weights[position + 1] else Role.USER
                fields["source_BT"][row, at] = 1 + example.language % 2
                at += 1
    return Batch(**fields)


def pack_pairs(examples: Sequence[Example]) -> list[list[Example]]:
    """Rows of two examples each: the packed form of `make_examples`."""
    return [list(examples[i : i + 2]) for i in range(0, len(examples), 2)]


def most_trained(batch: Batch) -> int:
    """The largest number of trained positions in any row."""
    return int((batch.loss_weight_BT > 0).sum(axis=1).max())


def place_state(params, tx: optax.GradientTransformation) -> TrainState:
    """The training state at step 0 of parameters in host memory, placed on the mesh in use."""
    host = TrainState(step=np.zeros((), np.int32), params=params, opt_state=tx.init(params))

    def place(leaf, like):
        return jax.device_put(leaf, like.sharding.spec if like.sharding else jax.P())

    return jax.tree.map(place, host, abstract_state(TOY, AXES, tx))


def packed_mask(segments_BT, positions_BT, window=0):
    """What each place of whole rows sees."""
    places = Places(segments_BT, positions_BT)
    return visible(places, places, window)


def copy_to_host(tree):
    """The tree as NumPy arrays that share no memory with the device's."""
    return jax.tree.map(lambda leaf: np.array(leaf), tree)


def assert_equal_trees(given, wanted):
    """Every leaf has the same bits."""
    jax.tree.map(np.testing.assert_array_equal, given, wanted)


def assert_close_trees(given, wanted):
    """Every leaf is equal within the tolerance."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), given, wanted)
