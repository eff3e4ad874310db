"""Channels put together from others: the closed form, and where nothing may be missing after it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import foveate
from foveate import FoveateError, VisionModel
from foveate.surgery.channels.remove import Narrow, Remove
from foveate.surgery.imagine import noise_for
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, simulated
from foveate.surgery.storage import Store
from foveate.surgery.udfc import NarrowRestored, RestoreRounded, coefficients

pytestmark = pytest.mark.paper("udfc")


def settled(model, seed=0):
    """Weights and norms unlike those that they begin with."""
    chance = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=chance)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim == 1:
            tensor.add_(0.3 * noise)
    return model.eval()


def images(count=4, side=8):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(7))


class Named(NarrowRestored):
    """Removes what the tests want."""

    def choose(self, model, groups):
        return {"0": [1, 4, 6]}


def pair(*between, width=8):
    """Two convolutions, the first of them so narrow that four of its channels tell of all."""
    torch.manual_seed(0)
    return settled(
        nn.Sequential(
            nn.Conv2d(3, width, 1, bias=False),
            nn.BatchNorm2d(width),
            *between,
            nn.Conv2d(width, 5, 3, padding=1),
        )
    )


# ---------------------------------------------------------------- the closed form


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_coefficients_are_the_least_squares(ridge):
    chance = torch.Generator().manual_seed(0)
    wanted, given = (torch.randn(n, 20, generator=chance, dtype=torch.float64) for n in (3, 6))
    start = torch.randn(3, 6, generator=chance, dtype=torch.float64)
    found = coefficients(wanted, given, start, 0.4, ridge)
    weigh = torch.ones(20, dtype=torch.float64)
    weigh[-1] = 0.4**0.5
    size = given[:, :-1].square().sum(1).mean()
    drawn = (ridge * size).sqrt() * torch.eye(6, dtype=torch.float64)
    rows = torch.cat(((given * weigh).T, drawn))
    aims = torch.cat(((wanted * weigh).T, drawn @ start.T))
    torch.testing.assert_close(found, torch.linalg.lstsq(rows, aims).solution.T)


def test_what_is_a_combination_is_found():
    chance = torch.Generator().manual_seed(0)
    given = torch.randn(4, 10, generator=chance)
    s = torch.randn(2, 4, generator=chance)
    found = coefficients(s @ given, given, torch.zeros(2, 4), 1.0, 0.0)
    torch.testing.assert_close(found, s.double(), atol=1e-5, rtol=1e-5)
    drawn = coefficients(s @ given, given, torch.zeros(2, 4), 1.0, 10.0)
    assert (drawn.norm(dim=1) < 0.5 * s.norm(dim=1)).all()


# ---------------------------------------------------------------- channels that go


def test_nothing_is_missing_where_channels_are_combinations():
    """Without an activation in between any five of eight channels tell of all the others."""
    model, x = pair(), images()
    edited, coverage = Named(ridge=0.0).apply(model, x)
    assert edited[0].out_channels == edited[2].in_channels == 5
    assert [line.name for line in coverage if line.changed] == ["0"]
    torch.testing.assert_close(edited(x), model(x), atol=2e-5, rtol=1e-4)
    removed, _ = Remove(gone={"0": (1, 4, 6)}).apply(model, x)
    assert (removed(x) - model(x)).abs().max() > 0.1


@pytest.mark.parametrize("means", [True, False])
def test_nothing_is_missing_where_channels_are_multiples_behind_a_relu(means):
    model, x = pair(nn.ReLU(), width=12), images()
    with torch.no_grad():
        for gone, donor, times in ((1, 0, 2.0), (4, 7, 0.3), (6, 7, 1.0)):
            model[0].weight[gone] = model[0].weight[donor]
            for part in ("running_mean", "running_var"):
                getattr(model[1], part)[gone] = getattr(model[1], part)[donor]
            for part in ("weight", "bias"):
                getattr(model[1], part)[gone] = times * getattr(model[1], part)[donor]
        for other in set(range(12)) - {0, 1, 4, 6, 7}:  # so that there is one combination only
            model[0].weight[other] = 0
            model[1].bias[other] = 0
            model[1].running_mean[other] = 0
    edited, _ = Named(ridge=0.0, means=means).apply(model, x)
    torch.testing.assert_close(edited(x), model(x), atol=2e-5, rtol=1e-4)


def test_readers_take_in_the_mean_that_is_missing():
    """On inputs that give channels the means and deviations that the norm tells."""
    model = pair(nn.ReLU())
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        made = model[0](x)
        model[1].running_mean.copy_(made.mean((0, 2, 3)))
        model[1].running_var.copy_(made.var((0, 2, 3)))
        inside = (..., slice(1, -1), slice(1, -1))
        wanted = model(x)[inside].mean((0, 2, 3))
        off = {}
        for means in (True, False):
            edited, _ = Named(means=means).apply(model, x)
            off[means] = (edited(x)[inside].mean((0, 2, 3)) - wanted).abs().max().item()
    assert off[True] < 0.01
    assert off[False] > 0.05


class Chained(nn.Module):
    """A residual, a depthwise chain, pooling and a linear head that reads maps."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.outer = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.wide = nn.Conv2d(6, 10, 1)
        self.deep = nn.Conv2d(10, 10, 3, groups=10)
        self.last = nn.Conv2d(10, 7, 1)
        self.head = nn.Linear(7 * 9, 4)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.outer(F.relu(self.norm(self.inner(x))))
        x = F.relu6(self.deep(F.relu(self.wide(F.relu(x)))))
        return self.head(F.avg_pool2d(F.gelu(self.last(x)), 2).flatten(1))


def test_what_can_be_made_up_for_and_what_cannot():
    torch.manual_seed(0)
    model = settled(Chained())
    edited, coverage = NarrowRestored(share=0.3).apply(model, images())
    assert {line.name: line.why for line in coverage} == {
        "inner": "2 of 8 channels removed, from 6 weights",
        "last": "2 of 7 channels removed, from 3 weights",
        "stem": "left, as not one plain layer alone makes its channels",
        "wide": "left, as not one plain layer alone makes its channels",
        "head": "left, as it is an output of the network",
    }
    assert (edited.inner.out_channels, edited.head.in_features) == (6, 5 * 9)


def test_pixels_and_sizes_without_data():
    torch.manual_seed(0)
    model = VisionModel.create("resnet_mini32", ["a", "b"], size=32)
    settled(model)
    edited, _ = NarrowRestored(share=0.25).apply(model)
    again, _ = NarrowRestored(share=0.25).apply(model, torch.rand(3, 3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(edited(x), again(x))
    with pytest.raises(FoveateError, match="Sequential does not say what size"):
        noise_for(pair())


# ---------------------------------------------------------------- rounding


def test_rounding_is_made_up_for_where_filters_tell_of_all():
    """Eight rounded filters of three weights span what the filters did."""
    model, x = pair(), images()
    rounded, _ = Simulate(weight_bits=3, activation_bits=None).apply(model, x)
    restored, coverage = RestoreRounded(ridge=0.0).apply(rounded, x)
    assert [line.why for line in coverage] == [
        "left because its input is no layer's output alone",
        "makes up for the rounding of 0",
    ]
    off = []
    for edited in (rounded, restored):
        edited[2].weight_grid.on = False  # the error of the first layer alone
        edited[2].plain_weight.copy_(edited[2].weight)
        off.append((edited(x) - model(x)).abs().max().item())
    assert off[0] > 0.05
    assert off[1] < 1e-4


def test_ranges_follow_what_is_taken_in():
    rounded, _ = Simulate(weight_bits=2, activation_bits=None).apply(pair(), images())
    restored, _ = RestoreRounded(ridge=0.0).apply(rounded, images())
    before, after = (simulated(model)["2"] for model in (rounded, restored))
    ratio = [
        layer.weight.detach().flatten(1).abs().amax(1) / layer.weight_grid.high.detach()
        for layer in (before, after)
    ]
    torch.testing.assert_close(*ratio)
    assert not torch.equal(before.weight, after.weight)


# ---------------------------------------------------------------- among other edits


def test_saved_among_other_edits_and_read_again(tmp_path):
    torch.manual_seed(0)
    model = VisionModel.create("resnet_mini32", ["a", "b"], size=32)
    settled(model)
    for edit in (
        Narrow(share=0.2),
        NarrowRestored(share=0.2),
        Simulate(weight_bits=6, activation_bits=None),
        RestoreRounded(),
        Store(),
    ):
        model, _ = edit.apply(model, torch.rand(2, 3, 32, 32))
    foveate.save(model, tmp_path)
    again = foveate.load_model(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))


def test_mistakes():
    with pytest.raises(FoveateError, match="ridge is -1"):
        NarrowRestored(ridge=-1.0)
    with pytest.raises(FoveateError, match="norm_term is -2"):
        RestoreRounded(norm_term=-2.0)
    with pytest.raises(FoveateError, match="share is 1"):
        NarrowRestored(share=1.0)
    with pytest.raises(FoveateError, match="Simulate has made"):
        RestoreRounded().apply(pair(), images())


def test_the_least_go_as_narrow_has_them():
    model, x = pair(nn.ReLU()), images()
    restored, _ = NarrowRestored(share=0.4).apply(model, x)
    narrow, _ = Narrow(share=0.4).apply(model, x)
    np.testing.assert_array_equal(restored[0].weight.detach(), narrow[0].weight.detach())
    assert not torch.equal(restored[3].weight, narrow[3].weight)
