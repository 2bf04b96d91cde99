"""The same model in Hugging Face transformers, trained as its Trainer would, as contenders."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from data.batch import Batch
from launch.config import Recipe
from tests.bench.start import MODEL_FOLDER, read_start
from tests.bench.torch_device import TorchDevice
from tests.bench.worker import DeviceKind
from tests.bench.workload import Step, pad_examples, split_rows

IGNORED = -100
Inputs = dict[str, Any]


class TransformersContender:
    """AutoModelForCausalLM with its own loss, fused AdamW and clipping, on padded examples or polytune's packed rows.

    With bfloat16 the weights are float32 and products autocast (the Trainer's `bf16=True`), as polytune keeps and
    computes them; `weights="bfloat16"` has weights, gradients and moments in bfloat16 instead.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        device: DeviceKind,
        *,
        is_packed: bool,
        attention: str = "sdpa",
        weights: str = "float32",
        is_compiled: bool = False,
        checkpoints_activations: bool = False,
    ):
        self._device = TorchDevice(device)
        start, batches = read_start(folder)
        self._rates = start.rates
        self._model = open_model(folder / MODEL_FOLDER, attention, getattr(torch, weights)).to(self._device.type)
        if checkpoints_activations:
            checkpoint_activations(self._model)
        self._call = torch.compile(self._model) if is_compiled else self._model
        self._is_autocast = recipe.compute.dtype == "bfloat16" and weights == "float32"
        self._max_norm = recipe.optim.max_grad_norm
        self._optimizer = make_optimizer(self._model, recipe)
        make = pad_inputs if not is_packed else flatten_inputs if attention == "flash_attention_2" else pack_inputs
        self._steps = [self._place(make, split_rows(batch, recipe.train.microbatches)) for batch in batches]

    def warm_up(self) -> None:
        """Returns when weights and rows are on the device; memory is counted from here."""
        self._device.synchronize()
        self._device.forget_peak()

    def utilisation(self) -> None:
        """Polytune has the formula."""

    def step(self, index: int) -> Step:
        """Makes step `index` on the next batch."""
        began = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[index]
        total = torch.zeros((), device=self._device.type)
        for inputs in self._steps[index % len(self._steps)]:
            with self._device.autocast(to_bfloat16=self._is_autocast):
                loss = self._call(**inputs, use_cache=False).loss
            loss.backward()
            total += loss.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._max_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._device.synchronize()
        seconds = time.perf_counter() - began
        return Step(float(total), float(grad_norm), seconds)

    def read_peak(self) -> int:
        """See `TorchDevice.read_peak`."""
        return self._device.read_peak()

    def _place(self, make, parts: list[Batch]) -> list[Inputs]:
        """The inputs of each microbatch on the device; losses are sums over the targets of all of them."""
        trained = torch.tensor(sum(int((part.loss_weight_BT > 0).sum()) for part in parts), device=self._device.type)
        made = [inputs for inputs in map(make, parts) if inputs is not None]
        return [
            {name: torch.from_numpy(array).long().to(self._device.type) for name, array in inputs.items()}
            | {"num_items_in_batch": trained}
            for inputs in made
        ]


def open_model(folder: Path, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """The exported model, every tensor found. Raises RuntimeError for an attention that is not the one asked for."""
    logging.disable_progress_bar()
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=attention, local_files_only=True, output_loading_info=True
    )
    wrong = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}
    if wrong:
        raise RuntimeError(f"{folder} is not this model's: {wrong}")
    if model.config._attn_implementation != attention:
        raise RuntimeError(f"transformers took {model.config._attn_implementation} in place of {attention}")
    return model.train()


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Makes the backward pass recompute each layer; transformers has renamed the call."""
    new_name = getattr(model, "activation_checkpointing_enable", None)
    (new_name or model.gradient_checkpointing_enable)()


def make_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW as the recipe has it, fused (the Trainer's default); no decay on vectors."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optim = recipe.optim
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(optim.b1, optim.b2), eps=optim.eps, fused=True)


def pad_inputs(batch: Batch) -> dict[str, np.ndarray] | None:
    """The batch's examples padded to the longest, as a collator makes them; None without examples."""
    padded = pad_examples(batch)
    if padded is None:
        return None
    labels = np.where(padded.loss_weight_NW > 0, padded.targets_NW, IGNORED)
    return {"input_ids": padded.tokens_NW, "attention_mask": padded.present_NW} | _label(labels)


def pack_inputs(batch: Batch) -> dict[str, np.ndarray]:
    """The rows as they are: where positions restart, transformers' masks end an example."""
    labels = np.where(batch.loss_weight_BT > 0, batch.targets_BT, IGNORED)
    return {"input_ids": batch.tokens_BT, "position_ids": batch.positions_BT} | _label(labels)


def flatten_inputs(batch: Batch) -> dict[str, np.ndarray]:
    """The rows one after the other as a single one, the only form in which flash attention looks at positions."""
    return {name: array.reshape(1, -1) for name, array in pack_inputs(batch).items()}


def _label(labels: np.ndarray) -> dict[str, np.ndarray]:
    """They are shifted already: where `shift_labels` are given, `labels` only says that there is a loss to compute."""
    return {"labels": labels, "shift_labels": labels}
