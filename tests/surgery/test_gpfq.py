"""Greedy path following against its definition, its bounds, and nearest rounding."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.columns import by_group, columns
from foveate.surgery.gpfq import Alphabet, FollowPath, follow, follow_slowly
from foveate.surgery.layers import geometry_of
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, simulated

pytestmark = pytest.mark.paper("gpfq")

PLACES = 16


def letters(step, most, **threshold):
    return Alphabet(torch.tensor(step), torch.tensor(-most), torch.tensor(most), **threshold)


def draw(width, seed, outputs=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, PLACES, width, generator=generator, dtype=torch.float64)
    w = 2 * torch.rand(1, outputs, width, generator=generator, dtype=torch.float64) - 1
    return w, x


@pytest.mark.parametrize("threshold", [{}, {"threshold": "soft"}, {"threshold": "hard"}])
def test_products_alone_give_the_path(threshold):
    torch.manual_seed(0)
    w = torch.randn(3, 5, 40, dtype=torch.float64)
    x = torch.randn(3, 70, 40, dtype=torch.float64)
    r = x + 0.1 * torch.randn_like(x)
    r[1, :, 7] = 0  # an input that died of rounding
    alphabet = letters(0.25, 5, **threshold, **({"beyond": 0.6} if threshold else {}))
    found, slow = (way(w, x, r, alphabet) for way in (follow, follow_slowly))
    assert torch.equal(found, slow)
    steps = found / 0.25
    torch.testing.assert_close(steps, steps.round())
    assert steps.abs().max() <= 5
    if threshold:
        plain = follow(w, x, r, letters(0.25, 5))
        assert (found == 0).sum() > 1.05 * (plain == 0).sum()


@pytest.mark.parametrize("step", [1.0, 2 / 7, 2 / 15])
def test_the_error_stays_below_its_bound_at_every_width(step):
    """What a step adds lies along its input, at most half a step of it, and what was astray
    before only loses what lies along that: so |X (w - q)|² <= step² / 4 |X|², whatever X is,
    as long as no letter is missing. For Gaussian X it grows as step² places² log N only."""
    for width in (32, 128, 512):
        w, x = draw(width, width)
        q = follow(w, x, x, letters(step, 1000))
        error = (x @ (w - q).mT).square().sum(1)
        assert error.max() <= step**2 / 4 * x.square().sum()
        assert error.max() <= step**2 * PLACES**2 * math.log(width)


@pytest.mark.parametrize(("step", "most"), [(1.0, 1), (2 / 7, 4), (2 / 15, 8)])
def test_relative_errors_fall_with_the_width(step, most):
    """As 1 / N, where nearest rounding's do not fall at all."""
    widths, alphabet = np.array([64, 128, 256, 512, 1024]), letters(step, most)
    errors = {"path": [], "nearest": []}
    for width in widths:
        relative = {name: [] for name in errors}
        for seed in range(4):
            w, x = draw(int(width), seed)
            signal = (x @ w.mT).square().sum()
            for name, q in (("path", follow(w, x, x, alphabet)), ("nearest", alphabet.nearest(w))):
                relative[name].append(((x @ (w - q).mT).square().sum() / signal).item())
        for name, values in relative.items():
            errors[name].append(float(np.mean(values)))
    falls = {name: np.polyfit(np.log(widths), np.log(v), 1)[0] for name, v in errors.items()}
    assert -1.25 < falls["path"] < -0.8
    assert abs(falls["nearest"]) < 0.15
    assert errors["path"][-1] < 0.1 * errors["nearest"][-1]


def test_convolutions_are_unfolded():
    """A convolution is rounded as the linear layer on its patches would be."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    x = torch.randn(5, 4, 6, 6)
    edited, _ = Simulate(weight_bits=3, activation_bits=None).apply(nn.Sequential(conv), x)
    edited, coverage = FollowPath(places=36).apply(edited, x)
    assert coverage[0].changed
    layer = edited[0]
    rows = columns(x, conv.weight, geometry_of(conv), 36, torch.Generator())
    weight = by_group(conv.weight, geometry_of(conv)).detach()
    (scale, _), low, high = layer.weight_grid.grid()
    alphabet = Alphabet(scale.view(2, 3), torch.tensor(low), torch.tensor(high))
    wanted = follow_slowly(weight.double(), rows.double(), rows.double(), alphabet)
    torch.testing.assert_close(layer.rounded_weight(), wanted.float().view_as(conv.weight))


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.Conv2d(16, 32, 3, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 36, 10),
        )


@pytest.mark.parametrize("channels", [True, False])
def test_networks_stay_nearer_than_with_nearest_rounding(channels):
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(64, 3, 8, 8)
    wanted = net(x)
    edit = Simulate(weight_bits=3, activation_bits=8, per_channel=channels)
    nearest, _ = edit.apply(net, x)
    rounded, coverage = FollowPath().apply(nearest, [x[:32], x[32:]])
    assert len(coverage) == 4
    errors = [(model(x) - wanted).square().mean().item() for model in (nearest, rounded)]
    assert errors[1] < 0.5 * errors[0]
    for layer in simulated(rounded).values():
        torch.testing.assert_close(layer.weight, layer.rounded_weight())
    sparse, _ = FollowPath(threshold="soft", beyond=0.5).apply(nearest, x)
    zeros = [
        sum((m.rounded_weight() == 0).sum().item() for m in simulated(model).values())
        for model in (rounded, sparse)
    ]
    assert zeros[1] > 1.5 * zeros[0]


def test_mistakes():
    for fields, message in (
        ({"places": 0}, "places is 0"),
        ({"threshold": "round"}, "threshold is 'round'"),
        ({"threshold": "soft"}, "beyond is 0"),
        ({"beyond": 1.0}, "beyond is 1"),
    ):
        with pytest.raises(FoveateError, match=message):
            FollowPath(**fields)
    with pytest.raises(FoveateError, match="apply it first"):
        FollowPath().apply(Net(), torch.randn(1, 3, 8, 8))
