"""Few bits on a network that really learned: what its issue asks for, and no worse."""

import numpy as np
import pytest

from foveate.data import open as open_data
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate


@pytest.mark.slow
@pytest.mark.paper("quant_whitepaper_qualcomm")
def test_a_trained_resnet_keeps_its_accuracy(script, shared):
    """At most 0.3 points lost to 8 bits, and 1.5 to weights of 4 with AdaRound."""
    networks = script("cifar_networks")
    data = open_data(shared / "data" / "cifar10.tar.gz")
    model = networks.network("resnet20", shared / "weights", data.labels)
    images = networks.calibration(data)
    right = networks.right(model, data)
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
        lost[name] = 100 * float(np.mean(right - networks.right(edited, data)))
    assert lost["8 bits"] <= 0.3
    assert lost["4 bits, AdaRound"] <= 1.5
    assert lost["4 bits, AdaRound"] < lost["4 bits"] - 1
