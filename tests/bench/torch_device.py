"""All that the torch side asks of its device. Whatever only a GPU answers is here and nowhere else."""

import importlib.util

import torch
import transformers

from tests.bench.memory import read_peak
from tests.bench.worker import DeviceFacts, DeviceKind, WantedDevice


class TorchDevice:
    """The first GPU where torch sees one, else, or if so wanted, the CPU."""

    def __init__(self, wanted: WantedDevice):
        self.kind: DeviceKind = "gpu" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
        self.type = "cuda" if self.kind == "gpu" else "cpu"

    def find_facts(self) -> DeviceFacts:
        """Facts to choose contenders by."""
        versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
        if self.kind == "cpu":
            return DeviceFacts("cpu", "CPU", None, ("sdpa",), f"{versions}, {torch.get_num_threads()} threads")
        flash = ("flash_attention_2",) if importlib.util.find_spec("flash_attn") else ()
        facts = torch.cuda.get_device_properties(0)
        return DeviceFacts("gpu", facts.name, facts.total_memory, ("sdpa", "flex_attention", *flash), versions)

    def autocast(self, *, to_bfloat16: bool) -> torch.autocast:
        """Products in bfloat16 of whatever dtype the weights have; or as they are."""
        return torch.autocast(self.type, dtype=torch.bfloat16, enabled=to_bfloat16)

    def synchronize(self) -> None:
        """Returns when everything asked of the device is done; a CPU is never behind."""
        if self.kind == "gpu":
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        """The peak counts from now on; that of a process cannot be forgotten."""
        if self.kind == "gpu":
            torch.cuda.reset_peak_memory_stats()

    def read_peak(self) -> int:
        """Most bytes of tensors held at once; on a CPU of the process."""
        return torch.cuda.max_memory_allocated() if self.kind == "gpu" else read_peak()
