"""The same model in Hugging Face transformers, trained as its Trainer would, as contenders."""

from pathlib import Path

import msgspec
import numpy as np
import torch
import transformers

from data.batch import Batch
from launch.config import Recipe
from model.config import ModelConfig
from tests.bench.workload import pad_examples, prepare_workload, read_batches


class TransformersContender:
    """LlamaForCausalLM, float32, fused AdamW, clipping, on padded examples or polytune's packed rows."""

    def __init__(self, recipe: Recipe, run_dir: Path, steps: int, *, start: Path, packed: bool, compiled: bool = False):
        with np.load(start) as stored:
            self._config = msgspec.json.decode(bytes(stored["model"]), type=ModelConfig)
            self._rates = stored["rates"]
            self._model = build_model(self._config, dict(stored))
        self._call = torch.compile(self._model) if compiled else self._model
        self._max_norm = recipe.optim.max_grad_norm
        self._optimizer = make_optimizer(self._model, recipe)
        batches = read_batches(recipe, prepare_workload(recipe, run_dir), steps)
        self._inputs = [pack_inputs(batch) if packed else pad_inputs(batch) for batch in batches]

    def describe(self) -> str:
        """Library, version and threads."""
        threads = torch.get_num_threads()
        return f"torch {torch.__version__} ({threads} threads), transformers {transformers.__version__}"

    def step(self, index: int) -> tuple[float, float]:
        """Mean loss of batch `index` before the update and its gradient's norm; the update is made."""
        tokens, labels, where = self._inputs[index]
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[index]
        # polytune scales embeddings to unit variance; Llama does not.
        embedded = self._model.model.embed_tokens(tokens) * self._config.dim**0.5
        logits = self._call(inputs_embeds=embedded, use_cache=False, **where).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        self._optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm)
        self._optimizer.step()
        return float(loss.detach()), float(grad_norm)


def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW as the recipe has it, fused (the Trainer's default); no decay on norms' scales."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    scales = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optim = recipe.optim
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": scales, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.b1, optim.b2), eps=optim.eps, fused=True)


def pad_inputs(batch: Batch) -> tuple:
    """Tokens, labels and mask of the batch's examples padded to the longest, as a collator makes them."""
    padded = pad_examples(batch)
    labels = np.where(padded.loss_weight_NW > 0, padded.targets_NW, -100)
    return _long(padded.tokens_NW), _long(labels), {"attention_mask": _long(padded.present_NW)}


def pack_inputs(batch: Batch) -> tuple:
    """Tokens, labels, block-diagonal causal mask and positions of the packed rows."""
    segments_BT = _long(batch.segments_BT)
    length = segments_BT.shape[1]
    causal_TS = torch.ones(length, length, dtype=torch.bool).tril()
    mask_BTS = (segments_BT[:, :, None] == segments_BT[:, None, :]) & causal_TS
    labels = np.where(batch.loss_weight_BT > 0, batch.targets_BT, -100)
    where = {"attention_mask": mask_BTS[:, None], "position_ids": _long(batch.positions_BT)}
    return _long(batch.tokens_BT), _long(labels), where


def build_model(config: ModelConfig, stored: dict[str, np.ndarray]) -> torch.nn.Module:
    """LlamaForCausalLM of the same shape with the stored parameters."""
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_theta=config.layers[0].rope.base,
            tie_word_embeddings=config.tied_head,
            attn_implementation="sdpa",
        )
    )
    wanted = {
        "model.embed_tokens.weight": stored["embedding.weight"],
        "model.norm.weight": stored["final_norm.scale"],
    }
    wanted["lm_head.weight"] = stored["embedding.weight"] if config.tied_head else stored["head.weight"].T
    for layer in range(config.num_layers):
        for name, array in _layer_arrays(config, {k: v[layer] for k, v in stored.items() if k.startswith("layers.")}):
            wanted[f"model.layers.{layer}.{name}.weight"] = array
    model.load_state_dict({name: torch.tensor(array) for name, array in wanted.items()})
    return model.float().train()


def _layer_arrays(config: ModelConfig, layer: dict[str, np.ndarray]):
    """Name and value of each of a layer's parameters there: matrices are (out, in), heads flattened."""
    for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
        yield f"self_attn.{theirs}", layer[f"layers.attention.{ours}.weight"].reshape(config.dim, -1).T
    yield "self_attn.o_proj", layer["layers.attention.out.weight"].reshape(-1, config.dim).T
    for name in ("gate", "up", "down"):
        yield f"mlp.{name}_proj", layer[f"layers.mlp.{name}.weight"].T
    yield "input_layernorm", layer["layers.attention_norm.scale"]
    yield "post_attention_layernorm", layer["layers.mlp_norm.scale"]


def _long(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).long()
