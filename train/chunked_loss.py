"""The head's cross-entropy a chunk of positions at a time, with its gradient made on the way.

Logits of a multilingual vocabulary are the widest arrays of training: 8 rows of 4096 positions at 262,144 ids are 34
GB in float32. Here a device holds those of one chunk of positions and its own part of the vocabulary, uses them for
loss and gradient at once, and drops them. Chunks are of trained positions: those without weight are not computed.

The backward pass has no product left to do, only to multiply by the cotangent of the objective, a scalar, whatever
that is. Letters beside the project's: C counts the positions of a chunk, N those of a device.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from model.config import ModelConfig
from model.parallel import axis_names
from model.transformer import finish_logits
from train.config import LossConfig
from train.loss import TokenLosses, added_loss, norms_of

CPU_BYTES, CPU_LEAST = 64 * 2**20, 128
"""Chunks of a CPU: logits of so many bytes, but so many positions at least. Measured: docs/benchmarks.md."""
ACCELERATOR_POSITIONS = 2048
"""Chunks of accelerators, reasoned and not measured: each reads and writes the whole gradient of the head, 8 V D bytes
beside 6 C V D operations, so C has to be well above 4/3 of what a chip computes while it moves a byte (about 300)."""

HEAD_LOOP = "head_chunks"
"""The scope of the loop over chunks, by which compiled programs tell it from others."""


class Layout(NamedTuple):
    """How a head's arrays lie on the mesh: the mesh axes of their dimensions. Static."""

    rows: tuple[str, ...]
    positions: tuple[str, ...]
    vocab: tuple[str, ...]
    embed: tuple[str, ...]
    tied: bool

    @property
    def tokens(self) -> tuple[str, ...]:
        """Axes along which devices have different tokens."""
        return self.rows + self.positions

    @property
    def scatters(self) -> bool:
        """Whether the sum of the head's gradient over tokens can end up split as the head is."""
        return bool(self.embed) and set(self.embed) <= set(self.tokens)

    def head_spec(self, embed: tuple[str, ...]) -> PartitionSpec:
        """Of an array like the head's matrix, whose width is split over these axes."""
        return PartitionSpec(self.vocab, embed) if self.tied else PartitionSpec(embed, self.vocab)


class Wanted(NamedTuple):
    """Which gradients a walk over the chunks makes. Static."""

    x: bool
    head: bool


class Tokens(NamedTuple):
    """What a walk needs of each position, besides its hidden state."""

    targets: Int[Array, "..."]
    is_trained: Bool[Array, "..."]
    loss_scale: Float[Array, "..."]
    """Cotangent of the position's bare cross-entropy."""
    objective_scale: Float[Array, "..."]
    """Cotangent of the position's part of the objective."""


class Walked(NamedTuple):
    """What comes of positions: losses, and gradients where they are wanted."""

    loss: Float[Array, "..."]
    objective: Float[Array, "..."]
    """Of each position, not weighted; 0, as the loss, where nothing is trained."""
    grad_x: Float[Array, "... D"] | None
    grad_head: Float[Array, "..."] | None
    """Within a device (D, V) whatever the head's layout: the narrower operand comes first in its product."""


def chunk_positions(config: LossConfig, vocabulary: int, device_kind: str) -> int:
    """How many positions a device has logits of at a time, if it has as many; `vocabulary` is the part of it there."""
    if config.chunk is not None:
        return config.chunk
    if device_kind != "cpu":
        return ACCELERATOR_POSITIONS
    return max(CPU_LEAST, CPU_BYTES // (4 * vocabulary) // CPU_LEAST * CPU_LEAST)


def chunked_losses(
    config: LossConfig,
    model: ModelConfig,
    x_BKD: Float[Array, "B K D"],
    head: Float[Array, "_ _"],
    targets_BK: Int[Array, "B K"],
    weight_BK: Float[Array, "B K"],
    *,
    has_norms: bool = False,
) -> TokenLosses:
    """The losses of normed hidden states and the head's matrix, from `apply_hidden` and `head_weight`.

    The same as `full_losses` of their logits. All arrays keep their sharding: rows (and positions) may be split over
    mesh axes, vocabulary and width of the head over others or the same. Products are of x's dtype accumulated in
    float32; gradients are products of float32.

    Differentiate the objective: its gradient is ready when its value is. A cotangent of `loss_BK` is served too, each
    position's by itself, by walking over the chunks again; nothing of that is compiled where there is none. Where the
    head is not differentiated, no gradient of it is made. Raises ValueError when the weights are differentiated.

    `has_norms`: `gradient_BK` too, read off the gradient of x that is made anyway, or made for it.
    """
    losses = cast(TokenLosses, _losses((config, model, has_norms), x_BKD, head, targets_BK, weight_BK))
    if losses.gradient_BK is None:
        return losses
    return losses._replace(gradient_BK=jax.lax.stop_gradient(losses.gradient_BK))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _losses(static, x_BKD, head, targets_BK, weight_BK):
    return _forward_only(static, x_BKD, head, targets_BK, weight_BK, Wanted(x=False, head=False))[0]


def _forward_only(static, x_BKD, head, targets_BK, weight_BK, wanted: Wanted) -> tuple[TokenLosses, Walked]:
    tokens = Tokens(targets_BK, weight_BK != 0, jnp.zeros_like(weight_BK), weight_BK)
    has_norms = static[2]
    walked = _walk(static, wanted._replace(x=wanted.x or has_norms), x_BKD, head, tokens)
    norms_BK = norms_of(walked.grad_x) if has_norms and walked.grad_x is not None else None
    losses = TokenLosses(jnp.sum(walked.objective * weight_BK), walked.loss, norms_BK)
    return losses, walked if wanted.x else walked._replace(grad_x=None)


def _forward(static, x_BKD, head, targets_BK, weight_BK):
    if weight_BK.perturbed:
        raise ValueError(
            "the chunked head has no gradient for loss weights: positions whose weight is 0 are never computed; "
            'stop their gradient, or differentiate the full head, LossConfig(head="full")'
        )
    wanted = Wanted(x=x_BKD.perturbed, head=head.perturbed)
    arrays = (x_BKD.value, head.value, targets_BK.value, weight_BK.value)
    losses, walked = _forward_only(static, *arrays, wanted)
    return losses, (walked, arrays)


def _backward(static, saved, g: TokenLosses):
    walked, (x_BKD, head, targets_BK, weight_BK) = saved
    g_objective = jnp.zeros(()) if _is_zero(g.objective) else g.objective
    grad_x, grad_head = walked.grad_x, walked.grad_head
    if _is_zero(g.loss_BK):
        grad_x, grad_head = (None if grad is None else grad * g_objective for grad in (grad_x, grad_head))
    else:
        is_trained_BK = weight_BK != 0
        of_losses_BK = jnp.where(is_trained_BK, g.loss_BK, 0.0)  # elsewhere the loss is a constant, 0
        tokens = Tokens(targets_BK, is_trained_BK, of_losses_BK, g_objective * weight_BK)
        wanted = Wanted(x=grad_x is not None, head=grad_head is not None)
        again = _walk(static, wanted, x_BKD, head, tokens)
        grad_x, grad_head = again.grad_x, again.grad_head
    return _like(x_BKD, grad_x), _like(head, grad_head), None, None


_losses.defvjp(_forward, _backward, symbolic_zeros=True)


def _like(array: Array, gradient: Array | None) -> Array | None:
    """The gradient in the dtype and sharding of what it is of."""
    if gradient is None:
        return None
    return jax.reshard(gradient, jax.typeof(array).sharding.spec).astype(array.dtype)


def _is_zero(cotangent) -> bool:
    return isinstance(cotangent, jax.custom_derivatives.SymbolicZero)


def _walk(static, wanted: Wanted, x_BKD, head, tokens: Tokens) -> Walked:
    """The losses and gradients of all positions, each device walking over the chunks of its own."""
    layout = _find_layout(static[1], x_BKD, head)
    tokens_spec, whole = PartitionSpec(layout.rows, layout.positions), layout.head_spec(())
    x_spec = PartitionSpec(*tokens_spec, None)
    head_spec = layout.head_spec(layout.embed) if layout.scatters else whole
    walk = jax.shard_map(
        functools.partial(_walk_device, static, layout, wanted),
        in_specs=(x_spec, whole, tokens_spec),
        out_specs=(tokens_spec, tokens_spec, x_spec if wanted.x else None, head_spec if wanted.head else None),
    )
    head = jax.reshard(head.astype(x_BKD.dtype), whole)  # cast before it is gathered: half the bytes in bfloat16
    tokens = jax.tree.map(lambda x_BK: jax.reshard(x_BK, tokens_spec), tokens)
    return Walked(*walk(jax.reshard(x_BKD, x_spec), head, tokens))


def _walk_device(static, layout: Layout, wanted: Wanted, x_BKD, head, tokens: Tokens) -> tuple[Any, ...]:
    """The fields of `_walk` for one device's rows and part of the vocabulary."""
    rows, length, dim = x_BKD.shape
    count = rows * length
    device_kind = jax.sharding.get_abstract_mesh().abstract_device.device_kind
    size, chunks = _split(count, chunk_positions(static[0], head.shape[0 if layout.tied else 1], device_kind))
    x_ND, tokens = x_BKD.reshape(count, dim), jax.tree.map(lambda x_BK: x_BK.reshape(count), tokens)
    visit = functools.partial(_visit, static, layout, wanted)
    walked = visit(x_ND, head, tokens) if chunks == 1 else _walk_chunks(visit, layout, wanted, x_ND, head, tokens, size)
    grad_x, grad_head = walked.grad_x, walked.grad_head
    if grad_x is not None:
        grad_x = _over(jax.lax.psum, grad_x, layout.vocab).reshape(rows, length, dim)
    if grad_head is not None:
        grad_head = grad_head.T if layout.tied else grad_head
        others = tuple(name for name in layout.tokens if not (layout.scatters and name in layout.embed))
        if layout.scatters:
            width = 1 if layout.tied else 0
            grad_head = jax.lax.psum_scatter(grad_head, layout.embed, scatter_dimension=width, tiled=True)
        grad_head = _over(jax.lax.psum, grad_head, others)
    loss, objective = (each.reshape(rows, length) for each in (walked.loss, walked.objective))
    return loss, objective, grad_x, grad_head


def _walk_chunks(visit, layout: Layout, wanted: Wanted, x_ND, head, tokens: Tokens, size: int) -> Walked:
    """`visit` of as many chunks of `size` positions as hold trained ones, which are brought together for it."""
    order_N = jnp.argsort(~tokens.is_trained, stable=True)
    back_N = jnp.argsort(order_N)
    padded = -(-order_N.shape[0] // size) * size

    def line_up(x):
        return jnp.pad(x[order_N], [(0, padded - x.shape[0])] + [(0, 0)] * (x.ndim - 1))

    x_ND, tokens = jax.tree.map(line_up, (x_ND, tokens))
    everywhere = layout.tokens + layout.vocab

    def zeros(axes, *shape):
        return jax.lax.pcast(jnp.zeros(shape, jnp.float32), axes, to="varying")

    vocabulary = head.shape[0 if layout.tied else 1]
    start = Walked(
        loss=zeros(layout.tokens, padded),
        objective=zeros(layout.tokens, padded),
        grad_x=zeros(everywhere, *x_ND.shape) if wanted.x else None,
        grad_head=zeros(everywhere, x_ND.shape[1], vocabulary) if wanted.head else None,
    )

    def step(chunk: Int[Array, ""], walked: Walked) -> Walked:
        at = chunk * size
        x_CD, part = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, at, size), (x_ND, tokens))
        new = visit(x_CD, head, part)
        grad_head = None if new.grad_head is None else walked.grad_head + new.grad_head
        placed = jax.tree.map(
            lambda old, value: jax.lax.dynamic_update_slice_in_dim(old, value, at, 0),
            walked._replace(grad_head=None), new._replace(grad_head=None),
        )  # fmt: skip
        return placed._replace(grad_head=grad_head)

    # As many on every device: those that share tokens exchange sums in each step.
    used = _over(jax.lax.pmax, (jnp.sum(tokens.is_trained) + size - 1) // size, layout.tokens)
    with jax.named_scope(HEAD_LOOP):
        walked = jax.lax.fori_loop(0, used, step, start)
    in_place = jax.tree.map(lambda x: x[back_N], walked._replace(grad_head=None))
    return in_place._replace(grad_head=walked.grad_head)


def _visit(static, layout: Layout, wanted: Wanted, x_CD, head, tokens: Tokens) -> Walked:
    """The losses of one chunk, and its gradients: those of x for this device's part of the vocabulary only."""
    config, model, _ = static
    vocabulary = head.shape[0 if layout.tied else 1]
    first_id = jax.lax.axis_index(layout.vocab) * vocabulary if layout.vocab else 0
    letters = "VD" if layout.tied else "DV"
    products_CV = jnp.einsum(f"CD,{letters}->CV", x_CD, head, preferred_element_type=jnp.float32)
    logits_CV, unfinish = jax.vjp(lambda products_CV: finish_logits(model, products_CV, first_id), products_CV)
    is_target_CV = jnp.arange(vocabulary)[None] == (tokens.targets - first_id)[:, None]
    is_real_1V = (first_id + jnp.arange(vocabulary) < model.vocab_size)[None]
    picked_C, log_z_C, mean_C = _reduce(config, model, layout, logits_CV, is_target_CV, is_real_1V)

    loss_C = jnp.where(tokens.is_trained, log_z_C - picked_C, 0.0)
    objective_C = loss_C
    if not config.is_bare:
        added_C = added_loss(config, picked_C, mean_C, log_z_C)
        objective_C = loss_C + jnp.where(tokens.is_trained, added_C, 0.0)
    if not (wanted.x or wanted.head):
        return Walked(loss_C, objective_C, None, None)

    # d/dlogit of a (log_z - picked) + b (log_z - (1 - e) picked - e mean + z log_z^2), with scales a and b.
    both_C = tokens.loss_scale + tokens.objective_scale
    of_share_C = both_C + 2 * config.z_loss_weight * log_z_C * tokens.objective_scale
    of_target_C = both_C - config.label_smoothing * tokens.objective_scale
    grad_CV = jnp.exp(logits_CV - log_z_C[:, None]) * of_share_C[:, None]
    grad_CV = grad_CV - jnp.where(is_target_CV, of_target_C[:, None], 0.0)
    if config.label_smoothing:
        uniform_C = config.label_smoothing / model.vocab_size * tokens.objective_scale
        grad_CV = grad_CV - jnp.where(is_real_1V, uniform_C[:, None], 0.0)
    (grad_CV,) = unfinish(grad_CV)
    head = head.astype(jnp.float32)
    return Walked(
        loss=loss_C,
        objective=objective_C,
        grad_x=jnp.einsum(f"CV,{letters}->CD", grad_CV, head) if wanted.x else None,
        grad_head=jnp.einsum("CD,CV->DV", x_CD.astype(jnp.float32), grad_CV) if wanted.head else None,
    )


def _reduce(config: LossConfig, model: ModelConfig, layout: Layout, logits_CV, is_target_CV, is_real_1V):
    """The target's logit, the logsumexp and the mean of each position's logits, over all parts of the vocabulary.

    The mean is the target's logit where label smoothing does not need it.
    """
    top_C = _over(jax.lax.pmax, jnp.max(logits_CV, axis=-1), layout.vocab)
    sums = [
        jnp.sum(jnp.exp(logits_CV - top_C[:, None]), axis=-1),
        jnp.sum(jnp.where(is_target_CV, logits_CV, 0.0), axis=-1),
    ]
    if config.label_smoothing:
        sums.append(jnp.sum(jnp.where(is_real_1V, logits_CV, 0.0), axis=-1))
    sums = _over(jax.lax.psum, jnp.stack(sums), layout.vocab)
    mean_C = sums[2] / model.vocab_size if config.label_smoothing else sums[1]
    return sums[1], top_C + jnp.log(sums[0]), mean_C


def _split(positions: int, most: int) -> tuple[int, int]:
    """Size and number of equal chunks of at most so many positions; sizes are multiples of 8 where there are several.

    1000 positions at most 512 at a time: 2 chunks of 504.
    """
    chunks = -(-positions // most)
    if chunks == 1:
        return positions, 1
    even = -(-positions // chunks)
    size = min(-(-even // 8) * 8, most)
    return size, -(-positions // size)


def _find_layout(model: ModelConfig, x_BKD, head) -> Layout:
    """The mesh axes of a head's arrays, read from their types."""
    rows, positions, _ = map(axis_names, jax.typeof(x_BKD).sharding.spec)
    vocab, embed = map(axis_names, jax.typeof(head).sharding.spec[:: 1 if model.tied_head else -1])
    return Layout(rows=rows, positions=positions, vocab=vocab, embed=embed, tied=model.tied_head)


def _over(collective: Callable[[Array, tuple[str, ...]], Array], x: Array, axes: tuple[str, ...]) -> Array:
    """The collective of x, or x itself where there is no axis to go over."""
    return collective(x, axes) if axes else x
