"""Learning-rate schedule and optimizer from `OptimConfig`."""

import jax
import optax

from train.config import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate of the update that is made `count` updates after the start (0-based).

    The first warm-up update already moves: update i of w has rate (i + 1) / w of the peak; the last update of the run
    has `final_lr_ratio` of it.

    Raises ValueError when the warm-up does not fit into the run.
    """
    warmup = config.warmup_steps
    if warmup >= steps:
        raise ValueError(f"optim.warmup_steps={warmup} leaves nothing of train.steps={steps}; use less than {steps}")
    peak, decay_steps = config.learning_rate, max(steps - warmup - 1, 1)
    shapes = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_lr_ratio),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_lr_ratio, decay_steps),
        "constant": lambda: optax.constant_schedule(peak),
    }
    after = shapes[config.lr_scheduler_type]()
    if not warmup:
        return after
    rise = optax.linear_schedule(peak / warmup, peak * (warmup + 1) / warmup, warmup)
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW with the schedule; no decay on vectors (norm scales)."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.adamw(
            make_schedule(config, steps), b1=config.b1, b2=config.b2, eps=config.eps,
            weight_decay=config.weight_decay, mask=_is_matrix,
        ),
    )  # fmt: skip


def _is_matrix(params):
    return jax.tree_util.tree_map_with_path(lambda path, leaf: path[-1].key != "scale", params)
