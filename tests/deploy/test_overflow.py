"""Sums of 8-bit products: where they overflow, and how many bits of weights are safe."""

import pytest
import torch
from torch import nn

from foveate import VisionModel
from foveate.deploy import overflow
from foveate.deploy.started import start_in
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.vision import Preprocess

pytest.importorskip("openvino")


@pytest.mark.parametrize(
    ("sets", "bits"),
    [
        (["AVX2"], 7),
        (["AVX-512", "AVX2"], 7),
        (["AVX-512", "AVX2", "VNNI"], 8),
        (["AVX2", "VNNI"], 8),
        (["dot products"], 8),
        ([], 8),
    ],
)
def test_what_each_processor_bears(sets, bits, monkeypatch):
    monkeypatch.setattr(overflow, "instruction_sets", lambda: sets)
    assert overflow.fitting_bits() == bits


def test_the_program_says_what_the_model_says_with_as_many_bits_as_fit():
    """All weights and pixels are the largest there are, so that any two products overflow."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten())
    for layer in (net[0], net[2]):
        nn.init.constant_(layer.weight, 0.1)
    model = VisionModel(net, Preprocess(size=8, mean=(0.0,) * 3, std=(1.0,) * 3), list("abcd"))
    image = torch.ones(1, 3, 8, 8)

    def errs(bits: int) -> float:
        rounded, _ = Simulate(weight_bits=bits, weight_range="minmax").apply(model.eval(), [image])
        own = rounded(image)
        found = torch.from_numpy(start_in("OpenVINO", rounded)(image.numpy()))
        return ((found - own).abs().max() / own.abs().max()).item()

    assert errs(overflow.fitting_bits()) < 0.02
    if overflow.sums_overflow():
        assert errs(8) > 0.1, "this OpenVINO no longer overflows: let 8 bits fit"
