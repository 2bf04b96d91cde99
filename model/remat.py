"""What of a layer is kept for its backward pass, by name; the rest is computed again from what is kept.

`none` keeps everything; `products` what products with weights give, so that norms, activations and attention scores are
computed again, at almost no arithmetic; `attention` a layer's input and what attention's gradient needs of its forward
pass, so that this is not run again; `block` a layer's input only, at a third more arithmetic; `offload` does the same,
and moves the inputs to the host's memory and back, at two copies of them between device and host.

What attention's gradient needs is, beside queries, keys and values, its output and one number for each query and head
(`splash`, `blockwise`, `cudnn`); of `dense` the T by T scores, which are float32.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from model.config import ComputeConfig

LAYER_INPUT = "layer_input"
ATTENTION = "attention"
"""Name of what attention's gradient needs of its forward pass."""
_POLICIES = jax.checkpoint_policies
_CUDNN_FORWARD = "dot_product_attention_fwd"


def _keep_attention(primitive: Any, *operands: Any, **parameters: Any) -> Any:
    """Keeps what has the name, and what cuDNN's forward pass gives, which has none."""
    is_cudnn = primitive.name.startswith(_CUDNN_FORWARD)
    return is_cudnn or _POLICIES.save_only_these_names(ATTENTION)(primitive, *operands, **parameters)


POLICIES: dict[str, Any] = {
    "products": _POLICIES.dots_with_no_batch_dims_saveable,
    "attention": _keep_attention,
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
