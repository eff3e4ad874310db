"""Regions against a table of their letters, and against grids of as many bits."""

import copy

import pytest
import torch
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.surgery.integers import affine_grid, fake_quantise
from foveate.surgery.mptq_vit.regions import RegionQuantiser, divisions

pytestmark = pytest.mark.paper("mptq_vit")


def draw(kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 8, 65, generator=generator)
    return (3 * x).softmax(-1) if kind == "softmax" else F.gelu(x)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("division", ["size", "sign", "both"])
def test_each_value_becomes_the_nearest_letter(bits, division):
    x = torch.cat((torch.linspace(-3, 3, 2001), torch.tensor([-100.0, 100.0])))
    for ratio in (0, 3, 6):
        grid = RegionQuantiser(bits)
        grid.high.data.fill_(2.0)
        grid.ratio.fill_(ratio)
        grid.ends.copy_(torch.tensor(divisions(bits)[division]))
        letters = grid.letters()
        assert len(letters) <= 2**bits
        assert letters[-1] == 2
        found = grid(x)
        assert (found[:, None] - letters).abs().amin(1).max() < 1e-6
        least = (x[:, None] - letters).abs().amin(1)
        torch.testing.assert_close((found - x).abs(), least)


def test_the_scales_are_a_power_of_two_apart():
    grid = RegionQuantiser(4)
    grid.fit(draw("softmax"))
    coarse = grid.high / 7
    fine = grid.letters()[1]
    assert (coarse / fine).item() == pytest.approx(2 ** int(grid.ratio), rel=1e-6)
    assert grid.ratio > 0


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["softmax", "gelu"])
def test_the_error_is_less_than_that_of_extremes(kind, bits):
    x = draw(kind)
    grid = RegionQuantiser(bits)
    grid.fit(x)
    plain = affine_grid(x.min(), x.max(), bits)
    theirs = (fake_quantise(x, plain, 0, 2**bits - 1) - x).square().mean()
    ours = (grid(x) - x).square().mean()
    assert ours <= (0.95 if bits < 8 or kind == "softmax" else 1.001) * theirs


def test_no_ratio_set_by_hand_is_better():
    x = draw("gelu")
    grid = RegionQuantiser(4)
    grid.fit(x)
    best = (grid(x) - x).square().mean()
    other = copy.deepcopy(grid)
    for division in divisions(4).values():
        for ratio in range(8):
            for share in (1.0, 0.7, 0.5, 0.35):
                other.high.data.copy_(x.max() * share)
                other.ratio.fill_(ratio)
                other.ends.copy_(torch.tensor(division))
                assert (other(x) - x).square().mean() > 0.97 * best


def test_gradients_pass_within_the_letters():
    grid = RegionQuantiser(4)
    grid.fit(draw("gelu"))
    x = torch.linspace(-2, 9, 500, requires_grad=True)
    y = grid.train()(x)
    torch.testing.assert_close(y, grid.eval()(x.detach()))
    y.sum().backward()
    letters = grid.letters()
    inside = (x > letters[0]) & (x < letters[-1])
    assert x.grad is not None
    assert torch.equal(x.grad != 0, inside)
    grid.on = False
    assert grid(x) is x
    fixed = grid.fixed()
    assert not any(p.requires_grad for p in fixed.parameters())
    assert torch.equal(fixed.letters(), letters)


def test_values_below_zero_have_no_regions():
    with pytest.raises(FoveateError, match="no value is above zero"):
        RegionQuantiser(4).fit(-torch.rand(10))
