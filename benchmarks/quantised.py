"""What few bits cost a published CIFAR-10 ResNet-20, in points of top-1 on 10,000 test images.

    python benchmarks/quantised.py WEIGHTS IMAGES [PIPELINE ...]

WEIGHTS and IMAGES: as cifar_networks.py says.
"""

import time
from pathlib import Path
from typing import Any

import torch
from asked import asked
from cifar_networks import CALIBRATION, calibration, network, right
from results import Sheet, show_points
from torch import nn

from foveate.data import open as open_data
from foveate.measure import mean_interval
from foveate.surgery.edit import Edit
from foveate.surgery.gpfq import FollowPath
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.equalise import CrossLayerEqualise
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store

SAYS = f"""\
A published ResNet-20 of CIFAR-10, edited with {CALIBRATION:,} training images to look at and no
tuning, in PyTorch, on the 10,000 test images, which choose nothing. Points lost are paired over the
images, with a 95% interval. *W4*: weights of 4 bits, activations in float; *W8A8*: both of 8. Size
is that of all tensors while it runs so; only what is stored in integers is small already. What
exported programs make of it is in *Compression of trained networks*."""


def pipelines() -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = {
        "W8A8 in integers": [Quantise()],
        "W8A8": [Simulate()],
        "W8A8, a scale a layer": [Simulate(per_channel=False)],
        "W8A8, a scale a layer, equalised": [
            CrossLayerEqualise(),
            Simulate(per_channel=False),
            CorrectBias(),
        ],
    }
    for bits in (4, 3, 2):
        begin = Simulate(weight_bits=bits, activation_bits=None)
        found |= {
            f"W{bits}, extremes": [
                Simulate(weight_bits=bits, activation_bits=None, weight_range="minmax")
            ],
            f"W{bits}": [begin],
            f"W{bits}, biases corrected": [begin, CorrectBias()],
            f"W{bits}, greedy path": [begin, FollowPath()],
            f"W{bits}, AdaRound": [begin, AdaRound()],
            f"W{bits}, AdaRound, biases corrected": [begin, AdaRound(), CorrectBias()],
        }
    found["W4A8, AdaRound"] = [Simulate(weight_bits=4), AdaRound()]
    found["W4, stored in groups of 64"] = [Store()]
    found["W4, AdaRound, stored"] = [
        Simulate(weight_bits=4, activation_bits=None),
        AdaRound(),
        Store(),
    ]
    return found


def main(weights: str, images: str, *only: str) -> None:
    data = open_data(images)
    model = network("resnet20", Path(weights), data.labels)
    looked_at = calibration(data)
    before = right(model, data)
    sheet = Sheet(
        __file__,
        title="Few bits",
        command="python benchmarks/quantised.py WEIGHTS IMAGES",
        says=SAYS,
        columns=["weights and activations", "top-1", "points lost", "size", "takes"],
        facts=[],
    )
    sheet.add("float", f"{before.mean():.2%}", "", size(model), "")
    for name, edits in pipelines().items():
        if only and name not in only:
            continue
        edited: Any = model
        began = time.perf_counter()
        for edit in edits:
            edited, _ = edit.apply(edited, looked_at)
        seconds = time.perf_counter() - began
        after = right(edited, data)
        lost = mean_interval(100 * (before - after))
        sheet.facts.append({"what": name, "points_lost": lost, "seconds": seconds})
        sheet.add(name, f"{after.mean():.2%}", show_points(lost), size(edited), f"{seconds:.1f} s")


def size(model: nn.Module) -> str:
    """Of all tensors."""
    return f"{sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e3:.0f} kB"


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*asked(__doc__, needed=("WEIGHTS", "IMAGES"), known=pipelines()))
