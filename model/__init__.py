"""Parameters, forward pass, axes and mesh, decoding, and a model on disk.

Shape legend, for the whole project. Arrays end in `_` and one capital letter per logical dimension:

    B batch            T query length     S key length       D model width
    N query heads      K kv heads         G = N / K          H head dimension
    F mlp width        E experts          V vocabulary       L layers
    M microbatches     R languages        C choices, or chosen experts
    P tokens sorted by expert

Einsum letters are the suffix letters: `jnp.einsum("BTD,DNH->BTNH", x_BTD, wq_DNH)`.

The seam between this folder and every other is three functions of `model.transformer`:
`init(cfg, axes, key) -> Params`, `apply(cfg, axes, params, ...) -> logits_BTV` and
`abstract(cfg, axes) -> Params of ShapeDtypeStruct`. `Params` is a nested `dict[str, ...]` of arrays with layers
stacked. No other folder imports flax.
"""
