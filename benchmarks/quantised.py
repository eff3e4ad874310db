"""What few bits cost a published CIFAR-10 ResNet-20, in points of top-1 on 10,000 test images.

    python benchmarks/quantised.py WEIGHTS IMAGES

WEIGHTS: resnet20 of github.com/akamaster/pytorch_resnet_cifar10 as safetensors, names as published.
IMAGES: CIFAR-10 as `foveate.data.open` takes it, with splits train and test. The model is
calibrated on 1,024 training images; the test split chooses nothing. Each row has the points lost
with a 95% interval over the images, paired.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.data import Batches
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
from foveate.train import evaluate
from foveate.vision import Preprocess, VisionModel

RESULTS = Path(__file__).with_suffix(".json")
CALIBRATION, BATCH = 1024, 128


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
    model = VisionModel(ResNet20().eval(), Preprocess(size=32), data.labels)
    model.backbone.load_state_dict(load_file(weights), strict=False)
    first = Batches(split=data.splits["train"], batch_size=BATCH, size=32).epoch(0)
    calibration = [next(first).images for _ in range(CALIBRATION // BATCH)]
    right_before = right(model, data)
    found: dict[str, Any] = {"machine": machine(), "top1": 100 * right_before.mean(), "rows": {}}
    print(f"{'float':<40} {found['top1']:.2f}%")
    for name, edits in pipelines().items():
        if only and name not in only:
            continue
        edited: nn.Module = model
        began = time.perf_counter()
        for edit in edits:
            edited, _ = edit.apply(edited, calibration)
        seconds = time.perf_counter() - began
        lost = mean_interval(100 * (right_before - right(edited, data)))
        size = sum(t.numel() * t.element_size() for t in edited.state_dict().values())
        found["rows"][name] = {"points_lost": lost, "seconds": seconds, "bytes": size}
        print(f"{name:<40} {lost[0]:.2f} points lost ({lost[1]:.2f} to {lost[2]:.2f})")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def right(model: Any, data: Any) -> np.ndarray:
    """For each test image whether the model is right, 0.0 or 1.0."""
    judged = evaluate(model, data.splits["test"])
    return (judged.logits.argmax(1) == judged.targets).astype(np.float64)


class ResNet20(nn.Module):
    """Three stages of three basic blocks; shortcuts take every second pixel and add zeros."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(*(Block(16 if i == 0 else 32, 32) for i in range(3)))
        self.layer3 = nn.Sequential(*(Block(32 if i == 0 else 64, 64) for i in range(3)))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        stride, self.more = out // dim, (out - dim) // 2
        self.conv1 = nn.Conv2d(dim, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return F.relu(x + y)


if __name__ == "__main__":
    torch.manual_seed(0)
    main(*sys.argv[1:])
