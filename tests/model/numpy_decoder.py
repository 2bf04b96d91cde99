"""The whole decoder again, in NumPy and float64, row by row and head by head; only the weights are shared."""

import numpy as np


def decode(cfg, params, tokens, segments, positions):
    """Logits of one row, T x V."""
    weights = _float64(params)
    table = weights["embedding"]["weight"]
    x = table[tokens] * cfg.embedding_scale
    for layer in range(cfg.num_layers):
        block = _layer(weights["layers"]["0"], layer)
        normed = rms_norm(x, block["attention_norm"]["scale"], cfg.norm_eps)
        x = x + attention(cfg, block["attention"], normed, segments, positions)
        normed = rms_norm(x, block["mlp_norm"]["scale"], cfg.norm_eps)
        gate = normed @ block["mlp"]["gate"]["weight"]
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ block["mlp"]["up"]["weight"])) @ block["mlp"]["down"]["weight"]
    x = rms_norm(x, weights["final_norm"]["scale"], cfg.norm_eps)
    return x @ (table.T if cfg.tied_head else weights["head"]["weight"])


def attention(cfg, weights, x, segments, positions):
    """Attended vectors, position by position: each query sums over the keys it may see and no others."""
    out = np.zeros_like(x)
    group = cfg.num_heads // cfg.num_kv_heads
    for head in range(cfg.num_heads):
        q = rotate(x @ weights["query"]["weight"][:, head], positions, cfg.layers[0].rope.base)
        k = rotate(x @ weights["key"]["weight"][:, head // group], positions, cfg.layers[0].rope.base)
        v = x @ weights["value"]["weight"][:, head // group]
        for t in range(len(x)):
            seen = [s for s in range(t + 1) if segments[s] == segments[t]]
            scores = np.array([q[t] @ k[s] / np.sqrt(cfg.head_dim) for s in seen])
            share = np.exp(scores - scores.max())
            share /= share.sum()
            out[t] += sum(p * v[s] for p, s in zip(share, seen, strict=True)) @ weights["out"]["weight"][head]
    return out


def rotate(x, positions, base):
    """Dimension i of either half make a complex number, turned by position * base^(-2i / H) radians."""
    half = x.shape[-1] // 2
    number = x[:, :half] + 1j * x[:, half:]
    turned = number * np.exp(1j * positions[:, None] * base ** (-2 * np.arange(half) / x.shape[-1]))
    return np.concatenate([turned.real, turned.imag], axis=-1)


def rms_norm(x, scale, eps):
    """x over its root mean square, scaled."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * scale


def _float64(tree):
    return {k: _float64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def _layer(tree, layer):
    return {k: _layer(v, layer) if isinstance(v, dict) else v[layer] for k, v in tree.items()}
