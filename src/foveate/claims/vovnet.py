"""Joining maps once is faster than joining them after every layer."""

import torch
from torch import nn
from torchvision.models.densenet import _DenseBlock

from foveate.claims import Finding, Lab, claim
from foveate.ops.vovnet import OneShotAggregation

WIDTH, SIDE, LAYERS = 128, 56, 5


class Dense(nn.Module):
    """DenseNet's block of five layers, as torchvision has it, and a 1x1 to the same width."""

    def __init__(self, growth: int) -> None:
        super().__init__()
        self.block = _DenseBlock(LAYERS, WIDTH, 4, growth, 0.0)
        self.reduce = nn.Conv2d(WIDTH + LAYERS * growth, 2 * WIDTH, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.reduce(self.block(x))


@claim(
    "vovnet",
    says="A one-shot aggregation takes less time than a dense block of as many multiply-adds.",
    paper="VoVNet-based detectors are 2x faster than DenseNet-based ones",
    minutes=1.0,
)
def once_is_faster(lab: Lab) -> Finding:
    x = lab.noise(1, WIDTH, SIDE, SIDE).contiguous(memory_format=lab.channels_last)
    aggregation = lab.make(lambda: OneShotAggregation(WIDTH, 2 * WIDTH, 64, LAYERS))
    wanted = lab.count(aggregation, x)
    growth = min(
        range(8, 129, 4), key=lambda g: abs(lab.count(Dense(g), x.cpu()).macs - wanted.macs)
    )
    dense = lab.make(lambda: Dense(growth))
    counted = lab.count(dense, x)
    ratio = lab.speed(dense, aggregation, x, share=0.7)
    evened = wanted.macs / counted.macs
    return Finding.above(
        1.0,
        (ratio.median * evened, ratio.low * evened, ratio.high * evened),
        unit="x",
        details={
            "growth": growth,
            "mmacs": {"aggregation": wanted.macs / 1e6, "dense": counted.macs / 1e6},
            "megabytes_moved": {"aggregation": wanted.bytes / 1e6, "dense": counted.bytes / 1e6},
            "peak_megabytes": {
                "aggregation": wanted.peak_bytes / 1e6,
                "dense": counted.peak_bytes / 1e6,
            },
        },
        note="Time a multiply-add; 128 channels, 56 pixels, one image, eager.",
    )
