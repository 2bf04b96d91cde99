"""Bytes of one chip's memory by kind: known from shapes and shardings, the rest from the compiler's buffers."""

import math
from typing import Any

import jax
import msgspec

from launch.plan_ahead.program import AbstractStep, CompiledStep
from model.parallel import ways
from train.chunked_loss import chunk_positions
from train.offload import is_on_host
from train.paths import split_frozen


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of one chip. The kinds add up to `total`."""

    parameters: int
    optimizer: int
    """Its moments, the average of parameters where one is kept, and the step counts."""
    batch: int
    """The fields of it that the step uses."""
    gradients: int
    """One float32 value for each trained parameter, partitioned like them."""
    logits: int
    """One float32 copy of the logits that are there at a time: a chunk's, or a microbatch's with the full head."""
    activations: int
    """What layers keep for the backward pass and whatever else is temporary: the compiler's temporaries without
    gradients and one copy of the logits."""
    padding: int
    """What the layouts of parameters, optimizer and batch add to them. 0 where it did not fit: then the compiler says
    the total only, and padding and code count as activations."""
    code: int
    total: int
    available: int
    """Of one chip's memory, for programs."""

    @property
    def spare(self) -> int:
        """What is left; negative when it does not fit."""
        return self.available - self.total


def split_memory(step: AbstractStep, compiled: CompiledStep, available: int) -> MemoryPlan:
    """The compiled step's bytes by kind."""
    parameters, batch = bytes_of_chip(step.state.params), bytes_of_chip(step.batch)
    optimizer = bytes_of_chip((step.state.opt_state, step.state.ema, step.state.step))
    arguments = compiled.argument_bytes or parameters + optimizer + batch
    code = compiled.code_bytes or 0
    temporary = compiled.temporary_bytes
    temporary = compiled.total_bytes - arguments - code if temporary is None else temporary
    padding = max(arguments - parameters - optimizer - batch, 0)
    # A compiler may free gradients or logits before the other is there: never more than it has at all.
    gradients = min(bytes_of_gradients(step), temporary)
    logits = min(bytes_of_logits(step), temporary - gradients)
    return MemoryPlan(
        parameters=parameters,
        optimizer=optimizer,
        batch=arguments - parameters - optimizer - padding,
        gradients=gradients,
        logits=logits,
        activations=temporary - gradients - logits,
        padding=padding,
        code=code,
        total=compiled.total_bytes,
        available=available,
    )


def bytes_of_chip(tree: Any) -> int:
    """Bytes of one chip's part of a tree of abstract arrays; what has no sharding is whole on every chip.

    What waits in the host's memory is none of the chip's.
    """

    def size(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding is not None else leaf.shape
        return math.prod(shape) * leaf.dtype.itemsize

    return sum(size(leaf) for leaf in jax.tree.leaves(tree) if not is_on_host(leaf))


def bytes_of_gradients(step: AbstractStep) -> int:
    """Bytes of one chip's part of the gradient."""
    return bytes_of_chip(split_frozen(step.state.params, step.spec.freeze)[0])


def bytes_of_logits(step: AbstractStep) -> int:
    """Bytes of one chip's part of the float32 logits that are there at a time."""
    spec, mesh = step.spec, jax.sharding.get_mesh()
    return 4 * min(chip_positions(step), chunk_of(step)) * spec.model.padded_vocab // ways(spec.axes.vocab, mesh)


def chip_positions(step: AbstractStep) -> int:
    """Positions of a microbatch that one chip makes logits for."""
    spec, mesh = step.spec, jax.sharding.get_mesh()
    rows = step.batch.tokens_BT.shape[0] // spec.microbatches // ways(spec.axes.batch, mesh)
    return rows * spec.most_trained // ways(spec.axes.length, mesh)


def chunk_of(step: AbstractStep) -> int:
    """How many of them it has at a time: all with the full head."""
    spec, mesh = step.spec, jax.sharding.get_mesh()
    if spec.loss.head == "full":
        return chip_positions(step)
    vocabulary = spec.model.padded_vocab // ways(spec.axes.vocab, mesh)
    return chunk_positions(spec.loss, vocabulary, jax.sharding.get_abstract_mesh().abstract_device.device_kind)


def head_trips(step: AbstractStep) -> int:
    """How often the head's loop runs where every position is trained."""
    return -(-chip_positions(step) // chunk_of(step))
