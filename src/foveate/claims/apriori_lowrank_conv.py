"""One-way filters learn the wave equation as well as full ones, with fewer weights."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.claims import Finding, Lab, claim
from foveate.measure import bootstrap
from foveate.ops.apriori_lowrank_conv import OneWayConv2d

SIDE, WIDTH, STEPS, BATCH, SEEDS = 32, 16, 300, 16, 8
COURANT = 0.5


def full(dim: int, dim_out: int) -> nn.Module:
    """A plain 3x3 convolution."""
    return nn.Conv2d(dim, dim_out, 3, padding=1)


def one_way(dim: int, dim_out: int) -> nn.Module:
    """The same of rank min(dim, dim_out)."""
    return OneWayConv2d(dim, dim_out, 3)


@claim(
    "apriori_lowrank_conv",
    says="Advancing a 2-D wave, a net of one-way filters errs less than 1.25 times as much as one "
    "of full convolutions with more than twice its weights.",
    paper="compressed layers match classical ones on a 2-D wave equation with fewer parameters",
    minutes=2.0,
)
def fewer_weights_suffice(lab: Lab) -> Finding:
    errors = []
    sizes: dict[str, int] = {}
    for seed in range(lab.seed, lab.seed + SEEDS):
        row = []
        for name, layer in (("one way", one_way), ("full", full)):
            net = lab.make(lambda layer=layer: _net(layer), seed)
            sizes[name] = sum(p.numel() for p in net.parameters())
            lab.fit(net, lambda step, seed=seed: _waves(seed * STEPS + step), F.mse_loss, STEPS)
            with torch.inference_mode():
                x, y = _waves(10**6)
                row.append(F.mse_loss(net(x), y).item())
        errors.append(row)
    logs = np.log(np.array(errors))
    figure, low, high = bootstrap(logs[:, 0] - logs[:, 1], lambda d: d.mean(axis=1))
    return Finding.below(
        1.25,
        (float(np.exp(figure)), float(np.exp(low)), float(np.exp(high))),
        unit="x",
        details={
            "weights": sizes,
            "squared_error": {
                "one way": float(np.exp(logs[:, 0].mean())),
                "full": float(np.exp(logs[:, 1].mean())),
            },
        },
        note=f"Ratio of mean squared errors, geometric mean over {SEEDS} seeds; four layers of "
        f"{WIDTH} channels, {SIDE} pixels, {STEPS} steps.",
    )


def _net(layer) -> nn.Sequential:
    return nn.Sequential(
        full(2, WIDTH), nn.ReLU(), layer(WIDTH, WIDTH), nn.ReLU(), layer(WIDTH, WIDTH), nn.ReLU(),
        full(WIDTH, 1),
    )  # fmt: skip


def _waves(seed: int) -> tuple[Tensor, Tensor]:
    """Two instants of waves from random bumps, and a later one, by finite differences."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.arange(SIDE, dtype=torch.float32)
    centre = SIDE * torch.rand(BATCH, 2, 1, generator=generator)
    bumps = (-(at - centre).square() / 8).exp()
    now = (bumps[:, 0, :, None] * bumps[:, 1, None, :])[:, None]
    before = now.clone()
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    states = []
    for _ in range(int(torch.randint(4, 12, (1,), generator=generator)) + 4):
        after = 2 * now - before + COURANT**2 * F.conv2d(now, kernel, padding=1)
        before, now = now, after
        states.append(now)
    return torch.cat((states[-5], states[-4]), 1), states[-1]
