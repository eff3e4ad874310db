"""Few large kernels see further than many small ones."""

import numpy as np
import torch
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.measure import bootstrap

WIDTH, SIDE, SHARE = 8, 63, 0.9
LARGE, SMALL = 13, 3
DRAWS = 16


class Stack(nn.Module):
    """Residual depthwise convolutions with batch norm and GELU."""

    def __init__(self, kernel: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH, WIDTH, kernel, padding=kernel // 2, groups=WIDTH, bias=False),
                nn.BatchNorm2d(WIDTH),
                nn.GELU(),
            )
            for _ in range(depth)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@claim(
    "unireplknet_v2",
    says="Of as many multiply-adds, two 13x13 depthwise layers have a larger effective receptive "
    "field than a stack of 3x3 ones.",
    paper="large kernels have larger effective receptive fields than deep small ones (figure 1)",
    minutes=1.0,
)
def large_kernels_see_further(lab: Lab) -> Finding:
    depth = round(2 * LARGE**2 / SMALL**2)
    fields = np.array(
        [
            [_field(lab, kernel, layers, draw) for kernel, layers in ((LARGE, 2), (SMALL, depth))]
            for draw in range(DRAWS)
        ]
    )
    figure, low, high = bootstrap(np.log(fields[:, 0] / fields[:, 1]), lambda d: d.mean(axis=1))
    return Finding.above(
        1.0,
        (float(np.exp(figure)), float(np.exp(low)), float(np.exp(high))),
        unit="x",
        details={
            "side_in_pixels": {
                "2 layers of 13x13": float(fields[:, 0].mean()),
                f"{depth} layers of 3x3": float(fields[:, 1].mean()),
            }
        },
        note="Side of the smallest square around the centre with 90% of the gradient of the "
        f"central output, untrained, {DRAWS} draws of weights; the interval is over draws.",
    )


def _field(lab: Lab, kernel: int, depth: int, draw: int) -> int:
    """Side of the square that holds most of the central output's gradient."""
    net = lab.make(lambda: Stack(kernel, depth), lab.seed + draw).train()
    x = lab.noise(2, WIDTH, SIDE, SIDE).requires_grad_()
    net(x)[..., SIDE // 2, SIDE // 2].sum().backward()
    assert x.grad is not None
    energy = x.grad.abs().sum((0, 1))
    half = SIDE // 2
    within = [
        energy[half - r : half + r + 1, half - r : half + r + 1].sum() for r in range(half + 1)
    ]
    return 2 * int(torch.stack(within).ge(SHARE * energy.sum()).int().argmax()) + 1
