"""What of a layer is kept for its backward pass, by name; the rest is computed again from what is kept.

`none` keeps everything; `products` what products with weights give, so that norms, activations and attention scores are
computed again, at almost no arithmetic; `block` a layer's input only, at a third more arithmetic; `offload` does the
same, and moves the inputs to the host's memory and back, at two copies of them between device and host.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from model.config import ComputeConfig

LAYER_INPUT = "layer_input"
_POLICIES = jax.checkpoint_policies
POLICIES: dict[str, Any] = {
    "products": _POLICIES.dots_with_no_batch_dims_saveable,
    "block": _POLICIES.nothing_saveable,
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
"""By `ComputeConfig.remat`."""


def name_input(x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """A layer's input, known to the policies; to be used first of all in a layer."""
    return checkpoint_name(x_BTD, LAYER_INPUT)


def remat(run_layer: Callable[..., Any], compute: ComputeConfig) -> Callable[..., Any]:
    """A function of a layer, its first argument static, that keeps what `compute.remat` says."""
    if compute.remat == "none":
        return run_layer
    return jax.checkpoint(run_layer, prevent_cse=False, static_argnums=0, policy=POLICIES[compute.remat])
