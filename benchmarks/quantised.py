"""What few bits cost a published CIFAR-10 ResNet-20, in points of top-1 on 10,000 test images.

    python benchmarks/quantised.py WEIGHTS IMAGES

WEIGHTS and IMAGES: as cifar_networks.py says. The model is calibrated on 1,024 training images.
Each row has the points lost with a 95% interval over the images, paired. What the exported
programs make of it, and how fast they are, compressed.py says.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cifar_networks import calibration, network, right

from foveate.data import open as open_data
from foveate.measure import machine, mean_interval
from foveate.surgery.edit import Edit
from foveate.surgery.gpfq import FollowPath
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.equalise import CrossLayerEqualise
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store

RESULTS = Path(__file__).with_suffix(".json")


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
    right_before = right(model, data)
    found: dict[str, Any] = {"machine": machine(), "top1": 100 * right_before.mean(), "rows": {}}
    print(f"{'float':<40} {found['top1']:.2f}%")
    for name, edits in pipelines().items():
        if only and name not in only:
            continue
        edited: Any = model
        began = time.perf_counter()
        for edit in edits:
            edited, _ = edit.apply(edited, looked_at)
        seconds = time.perf_counter() - began
        lost = mean_interval(100 * (right_before - right(edited, data)))
        size = sum(t.numel() * t.element_size() for t in edited.state_dict().values())
        found["rows"][name] = {"points_lost": lost, "seconds": seconds, "bytes": size}
        print(f"{name:<40} {lost[0]:.2f} points lost ({lost[1]:.2f} to {lost[2]:.2f})")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
