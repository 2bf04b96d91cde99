import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import TOLERANCE

from train.config import OptimConfig
from train.optim import make_optimizer, make_schedule
from train.paths import list_paths


def rates(steps, **fields):
    schedule = make_schedule(OptimConfig(learning_rate=1.0, **fields), steps)
    return [float(schedule(count)) for count in range(steps)]


HALF = 0.5
WSD = {"lr_scheduler_type": "warmup_stable_decay"}
TABLE = [
    (5, {"lr_scheduler_type": "constant"}, [1, 1, 1, 1, 1]),
    (5, {"lr_scheduler_type": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1]),
    (5, {"lr_scheduler_type": "linear"}, [1, 0.75, 0.5, 0.25, 0]),
    (5, {"lr_scheduler_type": "linear", "final_lr_ratio": 0.2}, [1, 0.8, 0.6, 0.4, 0.2]),
    (7, {"lr_scheduler_type": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.75, 0.5, 0.25, 0]),
    (5, {"lr_scheduler_type": "cosine"}, [1, 0.5 + HALF**1.5, 0.5, 0.5 - HALF**1.5, 0]),
    (5, {"lr_scheduler_type": "cosine", "final_lr_ratio": 0.5, "warmup_steps": 2}, [0.5, 1, 1, 0.75, 0.5]),
    (1, {}, [1]),
    (
        6,
        {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 4, "final_lr_ratio": 0.2},
        [1, 1, 0.8, 0.6, 0.4, 0.2],
    ),
    (6, WSD | {"decay_steps": 2, "warmup_steps": 2}, [0.5, 1, 1, 1, 0.5, 0]),
    (5, WSD | {"decay_steps": 4, "decay_type": "1-sqrt"}, [1, 0.5, 1 - HALF**0.5, 1 - 0.75**0.5, 0]),
    (5, WSD | {"decay_steps": 4, "decay_type": "cosine"}, [1, 0.5 + HALF**1.5, 0.5, 0.5 - HALF**1.5, 0]),
    (11, WSD, [1] * 10 + [0]),
    (3, WSD | {"decay_steps": 3, "final_lr_ratio": 0.1}, [0.7, 0.4, 0.1]),
    (6, {"lr_scheduler_type": "inverse_sqrt", "timescale": 1}, [1, 2**-0.5, 3**-0.5, 0.5, 5**-0.5, 6**-0.5]),
    (6, {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 2}, [0.5, 1, 1, 1.5**-0.5, 2**-0.5, 2.5**-0.5]),
    (2, {"lr_scheduler_type": "inverse_sqrt"}, [1, 1.0001**-0.5]),
    (3, {"warmup_steps": 2}, [0.5, 1, 1]),
]


@pytest.mark.parametrize(("steps", "fields", "wanted"), TABLE)
def test_learning_rate_of_every_update(steps, fields, wanted):
    """The first update moves, the peak is reached, and the last update has the final rate."""
    np.testing.assert_allclose(rates(steps, **fields), wanted, **TOLERANCE)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_rate_never_rises_after_the_warmup(kind):
    ratio = {} if kind == "constant" else {"final_lr_ratio": 0.1}
    after = rates(40, lr_scheduler_type=kind, warmup_steps=7, **ratio)[6:]
    assert all(a >= b for a, b in itertools.pairwise(after))
    assert after[-1] == pytest.approx(1.0 if kind == "constant" else 0.1)


@pytest.mark.parametrize("warmup", [5, 6])
def test_a_warmup_as_long_as_the_run_is_refused(warmup):
    message = f"optim.warmup_steps={warmup} leaves nothing of train.steps=5; use less than 5"
    with pytest.raises(ValueError, match=message):
        rates(5, warmup_steps=warmup)


def test_a_decay_longer_than_what_follows_the_warmup_is_refused():
    message = "optim.decay_steps=4 is more than the 3 steps after the warm-up; use at most 3"
    with pytest.raises(ValueError, match=message):
        rates(5, warmup_steps=2, decay_steps=4, **WSD)


PARAMS = {
    "embedding": {"weight": jnp.full((2, 2), 2.0)},
    "layers": {
        "norm": {"scale": jnp.full((3, 2), 2.0)},
        "up": {"weight": jnp.full((3, 2, 2), 2.0), "bias": jnp.full((3, 2), 2.0)},
    },
    "final_norm": {"scale": jnp.full(2, 2.0)},
}


def first_update(gradient, **fields):
    tx = make_optimizer(OptimConfig(learning_rate=0.1, lr_scheduler_type="constant", **fields), 3)
    with jax.numpy_dtype_promotion("standard"):
        return tx.update(gradient, tx.init(PARAMS), PARAMS)[0]


def decayed_paths(**fields):
    """The parameters that decay moves: with no gradient it takes rate x decay x weight = 0.1 x 0.5 x 2."""
    updates = first_update(jax.tree.map(jnp.zeros_like, PARAMS), weight_decay=0.5, **fields)
    moved = {
        path: float(leaf.ravel()[0]) for path, leaf in zip(list_paths(updates), jax.tree.leaves(updates), strict=True)
    }
    assert all(value == pytest.approx(-0.1) or value == 0 for value in moved.values())
    return {path for path, value in moved.items() if value}


def test_weight_decay_moves_matrices_and_spares_stacked_scales_and_biases():
    """A stacked bias has the dimensions of a matrix: only its name tells."""
    assert decayed_paths() == {"embedding/weight", "layers/up/weight"}


def test_weight_decay_goes_by_patterns_over_paths():
    assert decayed_paths(weight_decay_params=("layers/*",)) == {
        "layers/norm/scale", "layers/up/weight", "layers/up/bias",
    }  # fmt: skip
    message = r"optim.weight_decay_params: 'layer/up/\*' matches none of the 5 parameters; near it: layers/up/"
    with pytest.raises(ValueError, match=message):
        decayed_paths(weight_decay_params=("embedding/*", "layer/up/*"))


def test_a_first_update_is_the_rate_against_the_sign_of_the_gradient():
    updates = first_update(jax.tree.map(lambda leaf: leaf * -3e-3, PARAMS), max_grad_norm=1e9)
    for leaf in jax.tree.leaves(updates):
        np.testing.assert_allclose(leaf, np.full(leaf.shape, 0.1), rtol=1e-4)


def test_a_gradient_is_clipped_by_its_global_norm_before_adam():
    """With eps 1, Adam's first step is rate x g / (|g| + 1): it shows the length of what it was given."""
    gradient = jax.tree.map(lambda leaf: leaf * 0 + 2.0, PARAMS)
    norm = np.sqrt(sum(leaf.size * 4.0 for leaf in jax.tree.leaves(gradient)))
    clipped = first_update(gradient, eps=1.0, max_grad_norm=norm / 4)
    free = first_update(gradient, eps=1.0, max_grad_norm=norm * 4)
    np.testing.assert_allclose(clipped["final_norm"]["scale"], np.full(2, -0.1 * 0.5 / 1.5), rtol=1e-4)
    np.testing.assert_allclose(free["final_norm"]["scale"], np.full(2, -0.1 * 2 / 3), rtol=1e-4)
