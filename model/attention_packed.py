"""Attention over packed rows by the kernels that never hold T by T scores, each device with its rows and heads."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from model.attention import Places, alibi_slopes
from model.attention_blockwise import attend_blockwise
from model.attention_choice import Kernel, platform_in_use
from model.attention_cudnn import attend_cudnn
from model.parallel import AxisRules, ways


def attend_packed(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query: Places,
    key: Places,
    *,
    kernel: Kernel,
    scale: float,
    axes: AxisRules,
    window: int = 0,
    softcap: float = 0.0,
    alibi: bool = False,
) -> Float[Array, "B T N H"]:
    """What `model.attention.attend` gives with the mask `visible(query, key, window)`, by a kernel other than `dense`.

    Queries are sharded along positions by `axes.length`, keys are whole; query places must then have an index.

    That the kernel can serve the model is for `choose_attention` to say. On a CPU `splash` is interpreted, for tests.
    """
    q_spec, kv_spec = axes.spec("batch", "length", "heads", None), axes.spec("batch", None, "heads", None)
    arrays: list[Any] = [q_BTNH * scale, k_BSKH, v_BSKH, query, key]
    specs: list[Any] = [q_spec, kv_spec, kv_spec, _places_spec(query, axes, "length"), _places_spec(key, axes, None)]
    if kernel.name == "blockwise":
        run = functools.partial(attend_blockwise, block=kernel.block, window=window, softcap=softcap)
        arrays.append(jnp.asarray(alibi_slopes(q_BTNH.shape[2]), jnp.float32) if alibi else None)
        specs.append(axes.spec("heads") if alibi else None)
    elif kernel.name == "splash":
        # Here, as only those who use it need the TPU's part of Pallas, which JAX calls experimental.
        from model.attention_splash import attend_splash, make_splash, splash_spec

        run, query_axes = attend_splash, axes.spec("length")[0]
        splash = make_splash(
            q_BTNH.shape[1], k_BSKH.shape[1], block=kernel.block, window=window, softcap=softcap,
            shards=ways(query_axes, jax.sharding.get_abstract_mesh()), is_interpreted=platform_in_use() == "cpu",
        )  # fmt: skip
        arrays, specs = [splash, *arrays], [splash_spec(splash, query_axes), *specs]
    else:
        run = functools.partial(attend_cudnn, window=window)
    arrays = [jax.tree.map(jax.reshard, array, spec) for array, spec in zip(arrays, specs, strict=True)]
    if kernel.name != "blockwise":  # Pallas and cuDNN calls do not say along which mesh axes their results differ
        return jax.shard_map(run, in_specs=tuple(specs), out_specs=q_spec, check_vma=False)(*arrays)
    varying = tuple(sorted(_names_in(specs)))
    return jax.shard_map(
        functools.partial(_attend_varying, functools.partial(run, varying=varying), specs, varying),
        in_specs=tuple(specs), out_specs=q_spec,
    )(*arrays)  # fmt: skip


def _attend_varying(run, specs: list[Any], varying: tuple[str, ...], *arrays: Any) -> Array:
    """`run` of arrays that all differ along the same mesh axes, as a gradient that is written by hand needs."""

    def vary(leaf: Array, spec: PartitionSpec) -> Array:
        missing = tuple(name for name in varying if name not in _names_in(spec))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return run(*(jax.tree.map(vary, array, spec) for array, spec in zip(arrays, specs, strict=True)))


def _names_in(specs: Any) -> set[str]:
    """Mesh axes of a tree of partitions."""
    axes = [part for spec in jax.tree.leaves(specs, is_leaf=_is_spec) for part in spec]
    return {name for part in axes for name in ((part,) if isinstance(part, str) else part or ())}


def _is_spec(node: Any) -> bool:
    return isinstance(node, PartitionSpec)


def _places_spec(places: Places, axes: AxisRules, length: str | None) -> Places:
    spec = axes.spec("batch", length)
    return Places(spec, spec, None if places.index_T is None else axes.spec(length))  # type: ignore[arg-type]
