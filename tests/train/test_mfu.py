"""What a batch asks of the model, by hand; the peak it is held against, or that there is none."""

import msgspec
import numpy as np
import pytest
from toy import AXES, TOY, Example, lay_out

from model.chips import CHIPS, find_chip
from model.config import ComputeConfig, LayerKind
from train.config import TrainConfig
from train.mfu import make_utilisation
from train.step import StepSpec

TRAIN = TrainConfig(steps=2, batch_rows=2)
ROWS = [[Example([1, 5, 6, 7], [0, 0, 1, 1], 2), Example([1, 8, 9], [0, 0, 1], 3)], [Example([1, 9], [0, 1], 2)]]


def utilisation_of(*, freeze=(), tied_head=True, **train):
    spec = StepSpec(
        model=msgspec.structs.replace(TOY, layers=(LayerKind(), LayerKind(window=2)), tied_head=tied_head),
        axes=AXES, compute=ComputeConfig(), num_languages=4,
        most_trained=6, freeze=freeze,
    )  # fmt: skip
    return make_utilisation(spec, msgspec.structs.replace(TRAIN, **train))


def test_flops_of_a_packed_batch_by_hand(one_device):
    """Segments of 3, 2 and 1 positions; 4 of the 6 are trained."""
    matrices = 2 * (16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24)
    norms = 2 * 2 * 16 + 16
    pairs = (6 + 3 + 1) + (1 + 2 + 2 + 1 + 2 + 1)
    wanted = 6 * ((matrices + norms) * 6 + 32 * 16 * 4) + 12 * 8 * 4 * pairs
    assert utilisation_of().count_flops(lay_out(ROWS, length=6)) == wanted


MATRICES = 16 * 32 + 2 * 16 * 16 + 32 * 16 + 3 * 16 * 24
LAYER, PAIRS, HEAD = MATRICES + 2 * 16, (6 + 3 + 1, 1 + 2 + 2 + 1 + 2 + 1), 32 * 16


@pytest.mark.parametrize(
    ("freeze", "tied", "layers", "final_norm", "head", "attention"),
    [
        (("embedding/*",), False, (6, 6), 6, 6, (12, 12)),
        (("embedding/*",), True, (6, 6), 6, 4, (12, 12)),
        (("embedding/*", "layers/0/*"), False, (2, 6), 6, 6, (4, 12)),
        (("layers/*",), True, (4, 4), 6, 6, (12, 12)),
        (("embedding/*", "layers/*"), False, (2, 2), 6, 6, (4, 4)),
        (("embedding/*", "layers/*", "final_norm/*"), False, (2, 2), 2, 4, (4, 4)),
        (("layers/1/*", "embedding/*", "final_norm/*", "head/*"), False, (6, 4), 4, 4, (12, 12)),
    ],
)
def test_frozen_parameters_count_no_gradient_that_nothing_needs(
    one_device, freeze, tied, layers, final_norm, head, attention
):
    """Frozen parameters counted as trained ones: a run that trains a head alone looked three times as fast."""
    wanted = 6 * (layers[0] * LAYER + layers[1] * LAYER + final_norm * 16) + head * 4 * HEAD
    wanted += 8 * 4 * (attention[0] * PAIRS[0] + attention[1] * PAIRS[1])
    assert utilisation_of(freeze=freeze, tied_head=tied).count_flops(lay_out(ROWS, length=6)) == wanted


def test_of_a_partly_frozen_layer_each_parameter_counts_for_itself(one_device):
    """Only `down` is trained, from layer 0 on: gradients go through all, 4 FLOPs for what is frozen."""
    freeze = ("embedding/*", "*norm/*", "*attention/*", "*/up/*", "*/gate/*", "head/*")
    down = 16 * 24
    wanted = 6 * (2 * (4 * (LAYER - down) + 6 * down) + 4 * 16) + 4 * 4 * HEAD + 12 * 8 * 4 * sum(PAIRS)
    assert utilisation_of(freeze=freeze, tied_head=False).count_flops(lay_out(ROWS, length=6)) == wanted


def test_padding_and_untrained_positions_are_no_work(one_device):
    """Counting padding as work makes an unpacked run look as fast as a packed one."""
    utilisation = utilisation_of()
    packed, padded = lay_out(ROWS, length=6), lay_out([[example] for row in ROWS for example in row], length=64)
    assert utilisation.count_flops(packed) == utilisation.count_flops(padded)
    untrained = packed._replace(loss_weight_BT=np.zeros_like(packed.loss_weight_BT))
    assert utilisation.count_flops(packed) - utilisation.count_flops(untrained) == 6 * 32 * 16 * 4


def test_no_peak_is_made_up_for_a_cpu(one_device):
    utilisation = utilisation_of()
    assert utilisation.peak_of_all is None
    assert "MFU is not shown: the peak of this device (cpu) is unknown" in utilisation.describe()


def test_formula_peak_and_denominator_are_said(one_device):
    utilisation = utilisation_of(peak_flops_per_s=2e12)
    assert utilisation.peak_of_all == 2e12
    text = utilisation.describe()
    assert "6 x 5,456 parameters a real token + 6 x 512 of the head a trained token + 384 (12 x heads x wid" in text
    frozen = utilisation_of(freeze=("embedding/*", "layers/0/*"), tied_head=False).describe()
    assert "2 x 2,720 + 6 x 2,736 parameters a real token" in frozen and "128 or 384 (12 x heads x width; 4 x" in frozen
    assert "MFU = those / (seconds x 1 device(s) x 2e+12 FLOP/s)" in text and "of the recipe" in text


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"), ("TPU v5", "v5p"), ("TPU v6 lite", "v6e"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None), ("NVIDIA H100 NVL", None), ("cpu", None),
    ],
)  # fmt: skip
def test_a_chip_is_known_by_its_whole_name(kind, chip):
    """The PCIe card of the same name computes a quarter less: its MFU would be too low by as much."""
    assert find_chip(kind) == (CHIPS[chip] if chip else None)
