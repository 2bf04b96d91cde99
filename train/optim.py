"""Learning-rate schedule and optimizer from `OptimConfig`."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import msgspec
import optax

from model.config import ModelConfig
from model.parallel import AxisRules
from model.transformer import Params, abstract
from train.config import OptimConfig
from train.matrices import each_matrix, is_hidden_matrix, is_matrix
from train.muon import scale_by_muon
from train.paths import list_paths, map_with_path, match_paths, split_frozen


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate of the update that is made `count` updates after the start (0-based).

    The first warm-up update already moves: update i of w has rate (i + 1) / w of the peak; the last update of the run
    has `final_lr_ratio` of it, where the schedule has one.

    Raises ValueError when the warm-up, or the decay after it, does not fit into the run.
    """
    warmup = config.warmup_steps
    if warmup >= steps:
        raise ValueError(f"optim.warmup_steps={warmup} leaves nothing of train.steps={steps}; use less than {steps}")
    after = _SHAPES[config.lr_scheduler_type](config, steps - warmup)
    if not warmup:
        return after
    peak = config.learning_rate
    rise = optax.linear_schedule(peak / warmup, peak * (warmup + 1) / warmup, warmup)
    return optax.join_schedules([rise, after], [warmup])


def _fall(shape: str, peak: float, ratio: float, steps: int) -> optax.Schedule:
    """From the peak at 0 to `ratio` of it at `steps`. Shape 1-sqrt: arXiv:2405.18392, section 4."""
    if shape == "linear":
        return optax.linear_schedule(peak, peak * ratio, steps)
    if shape == "cosine":
        return optax.cosine_decay_schedule(peak, steps, alpha=ratio)
    return lambda count: peak * (ratio + (1 - ratio) * (1 - jnp.sqrt(jnp.clip(count / steps, 0.0, 1.0))))


def _whole_fall(config: OptimConfig, steps: int) -> optax.Schedule:
    assert config.final_lr_ratio is not None, "OptimConfig fills in what a schedule reads"
    return _fall(config.lr_scheduler_type, config.learning_rate, config.final_lr_ratio, max(steps - 1, 1))


def _stable_then_fall(config: OptimConfig, steps: int) -> optax.Schedule:
    assert config.final_lr_ratio is not None and config.decay_type is not None
    decay = config.decay_steps or max(steps // 10, 1)
    if decay > steps:
        raise ValueError(
            f"optim.decay_steps={decay} is more than the {steps} steps after the warm-up; use at most {steps}"
        )
    fall = _fall(config.decay_type, config.learning_rate, config.final_lr_ratio, decay)
    return lambda count: fall(jnp.maximum(count - (steps - 1 - decay), 0))


def _inverse_sqrt(config: OptimConfig, _steps: int) -> optax.Schedule:
    timescale = config.timescale or config.warmup_steps or 10_000
    return lambda count: config.learning_rate / jnp.sqrt(1.0 + count / timescale)


_SHAPES: dict[str, Callable[[OptimConfig, int], optax.Schedule]] = {
    "cosine": _whole_fall,
    "linear": _whole_fall,
    "constant": lambda config, _steps: optax.constant_schedule(config.learning_rate),
    "warmup_stable_decay": _stable_then_fall,
    "inverse_sqrt": _inverse_sqrt,
}
"""What follows the warm-up, by name: from a config and the steps that are left."""


def make_optimizer(config: OptimConfig, steps: int, *, freeze: Sequence[str] = ()) -> optax.GradientTransformation:
    """Clipping by global norm, the optimizer, decoupled weight decay, and the schedule.

    Its state begins from all parameters and holds nothing of those that `freeze` matches; it is updated with gradients
    and parameters of the others alone. Raises ValueError for patterns that match nothing, when the state begins.
    """
    chosen = optax.chain(
        _OPTIMIZERS[config.name](**config.options),
        optax.add_decayed_weights(config.weight_decay, mask=functools.partial(_decay_mask, config)),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )
    tx = optax.chain(optax.clip_by_global_norm(config.max_grad_norm), chosen)
    return optax.GradientTransformation(lambda params: tx.init(split_frozen(params, freeze)[0]), tx.update)


def _adamw(*, b1: float, b2: float, eps: float, mu_dtype: str) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=jnp.dtype(mu_dtype))


def _lion(*, b1: float, b2: float, mu_dtype: str) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1=b1, b2=b2, mu_dtype=jnp.dtype(mu_dtype))


def _adafactor(
    *, decay_rate: float, clipping_threshold: float, min_dim_size_to_factor: int, multiply_by_parameter_scale: bool
) -> optax.GradientTransformation:
    """`optax.adafactor` without its decay, which ignores the learning rate, for each matrix of a stack by itself."""
    parts = [
        optax.scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor),
        optax.clip_by_block_rms(clipping_threshold),
    ]
    return each_matrix(optax.chain(*parts, *([optax.scale_by_param_block_rms()] * multiply_by_parameter_scale)))


def _muon(*, momentum: float, ns_steps: int, mu_dtype: str, **adam: Any) -> optax.GradientTransformation:
    """Muon for the layers' matrices; AdamW for embedding, head and all vectors."""
    muon = scale_by_muon(momentum=momentum, ns_steps=ns_steps, mu_dtype=mu_dtype)
    return optax.partition({"muon": muon, "adamw": _adamw(mu_dtype=mu_dtype, **adam)}, _label_for_muon)


def _label_for_muon(params: Params) -> Any:
    return map_with_path(lambda path, _: "muon" if is_hidden_matrix(path) else "adamw", params)


_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "lion": _lion,
    "muon": _muon,
}
"""What makes a gradient an update before decay and learning rate, from the options that `train.config` lists for it."""


def check_patterns(config: OptimConfig, freeze: Sequence[str], cfg: ModelConfig) -> None:
    """Raises ValueError for a pattern over parameters that matches none of this model's; nothing large is made."""
    whole = AxisRules(**dict.fromkeys(AxisRules.__struct_fields__))
    params = abstract(msgspec.structs.replace(cfg, vocab_size=cfg.vocab_size or 1), whole)
    _decay_mask(config, split_frozen(params, freeze)[0])


def _decay_mask(config: OptimConfig, params: Any) -> Any:
    """True for what decays. Raises ValueError for a pattern that matches no trained parameter."""
    if config.weight_decay_params is None:
        return map_with_path(lambda path, _: is_matrix(path), params)
    decayed = match_paths(config.weight_decay_params, list_paths(params), field="optim.weight_decay_params")
    return map_with_path(lambda path, _: path in decayed, params)
