"""Time follows activations more closely than it follows operations."""

from functools import partial

import numpy as np
import torch
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.measure import bootstrap, exponent
from foveate.measure.fast_scaling import COMPOUND, factors, fast

DEPTH, WIDTH, SIDE = 4, 24, 48
GROWTH = (1, 2, 4, 8)


class Residual(nn.Module):
    """A 3x3 convolution with its norm, added to its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def plain_net(depth: int, width: int) -> nn.Sequential:
    """Three stages of residual convolutions."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1)]
    for stage in range(3):
        dim = width * 2**stage
        if stage:
            layers.append(nn.Conv2d(dim // 2, dim, 2, stride=2))
        layers += [Residual(dim) for _ in range(depth)]
    return nn.Sequential(*layers)


@claim(
    "fast_scaling",
    says="Over ways to scale a network, time correlates better with activations than with "
    "operations.",
    paper="runtime is governed by activations; dWr grows them about as the root of s",
    minutes=2.0,
)
def time_follows_activations(lab: Lab) -> Finding:
    ways = {**COMPOUND, "dWr": fast(0.8)}
    rows, growth = [], {}
    for way, shares in ways.items():
        activations = []
        for s in GROWTH:
            by = factors(s, shares)
            width = 4 * round(WIDTH * by.width / 4)
            net = lab.make(partial(plain_net, round(DEPTH * by.depth), width))
            side = 4 * round(SIDE * by.resolution / 4)
            x = lab.noise(1, 3, side, side).contiguous(memory_format=lab.channels_last)
            counted = lab.count(net, x)
            share = 0.9 / len(ways) / len(GROWTH)
            seconds = lab.times({way: net}, x, share=share)[way].median
            rows.append((seconds, counted.activations, counted.flops))
            activations.append(counted.activations)
        growth[way] = exponent(np.array(GROWTH), np.array(activations)).power
    figure, low, high = bootstrap(np.log(np.array(rows)), _advantage)
    correlations = np.corrcoef(np.log(np.array(rows)).T)[0]
    return Finding.above(
        0.0,
        (figure, low, high),
        details={
            "correlation_with_activations": float(correlations[1]),
            "correlation_with_operations": float(correlations[2]),
            "exponent_of_activations": growth,
            "exponent_expected": {way: shares.activations for way, shares in ways.items()},
            "networks": len(rows),
        },
        note="Correlation of log time with log activations less that with log operations, over 24 "
        "scaled convolutional networks, one image each.",
    )


def _advantage(draws: np.ndarray) -> np.ndarray:
    """Over resamples (R, N, 3) of time, activations and operations: (R,)."""
    centred = draws - draws.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.square(centred).sum(axis=1))
    products = (centred[..., :1] * centred[..., 1:]).sum(axis=1)
    both = products / np.maximum(norms[:, :1] * norms[:, 1:], 1e-300)
    return both[:, 0] - both[:, 1]
