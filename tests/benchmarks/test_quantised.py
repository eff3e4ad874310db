"""Few bits on a network that really learned: what its issue asks for, and no worse."""

import numpy as np
import pytest
from safetensors.torch import load_file

from foveate import VisionModel
from foveate.data import Batches
from foveate.data import open as open_data
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.vision import Preprocess


@pytest.mark.slow
@pytest.mark.paper("quant_whitepaper_qualcomm")
def test_a_trained_resnet_keeps_its_accuracy(script, shared):
    """At most 0.3 points lost to 8 bits, and 1.5 to weights of 4 with AdaRound."""
    quantised = script("quantised")
    data = open_data(shared / "data" / "cifar10.tar.gz")
    model = VisionModel(quantised.ResNet20().eval(), Preprocess(size=32), data.labels)
    weights = load_file(shared / "weights" / "resnet20_cifar10.safetensors")
    missing, unexpected = model.backbone.load_state_dict(weights, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert not unexpected
    batches = Batches(split=data.splits["train"], batch_size=128, size=32).epoch(0)
    images = [next(batches).images for _ in range(8)]
    right = quantised.right(model, data)
    assert 0.80 < right.mean() < 0.82
    small = Simulate(weight_bits=4, activation_bits=None)
    lost = {}
    for name, edits in (
        ("8 bits", [Simulate()]),
        ("4 bits", [small]),
        ("4 bits, AdaRound", [small, AdaRound()]),
    ):
        edited = model
        for edit in edits:
            edited, _ = edit.apply(edited, images)
        lost[name] = 100 * float(np.mean(right - quantised.right(edited, data)))
    assert lost["8 bits"] <= 0.3
    assert lost["4 bits, AdaRound"] <= 1.5
    assert lost["4 bits, AdaRound"] < lost["4 bits"] - 1
