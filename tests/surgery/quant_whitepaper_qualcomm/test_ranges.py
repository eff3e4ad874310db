"""Ranges against closed forms on known distributions, and against trying everything."""

import math

import pytest
import torch

from foveate.surgery.integers import fake_quantise
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser, grid_over
from foveate.surgery.quant_whitepaper_qualcomm.ranges import Sample, set_range

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


def normal_error(end, bits):
    """The mean squared error of a standard normal variable on a symmetric grid to `end`, by its
    partial moments: each point of the grid takes what lies nearest."""
    top = 2 ** (bits - 1) - 1
    step = end / top

    def moments(z):
        if math.isinf(z):
            return (0.0, 0.0, 0.0) if z < 0 else (1.0, 0.0, 1.0)
        density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + math.erf(z / math.sqrt(2)))
        return below, -density, below - z * density

    total = 0.0
    for q in range(-top, top + 1):
        low = -math.inf if q == -top else (q - 0.5) * step
        high = math.inf if q == top else (q + 0.5) * step
        zeroth, first, second = (b - a for a, b in zip(moments(low), moments(high), strict=True))
        total += second - 2 * q * step * first + (q * step) ** 2 * zeroth
    return total


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_least_squared_error_of_a_normal_distribution(bits):
    levels = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    x = (2**0.5 * torch.erfinv(2 * levels - 1)).float()[None]
    low, high = set_range(x, bits, True, "mse")
    assert low == -high
    ends = [0.5 + 0.005 * i for i in range(800)]
    errors = [normal_error(end, bits) for end in ends]
    best = ends[errors.index(min(errors))]
    assert high.item() == pytest.approx(best, rel=0.03)
    rounded = fake_quantise(x, *grid_over(low, high, bits, True))
    assert (x - rounded).square().mean().item() == pytest.approx(min(errors), rel=0.01)


def test_a_uniform_distribution_is_left_whole():
    """Its error is step² / 12, and what cuts it off loses more than smaller steps gain."""
    x = torch.linspace(0, 3, 50_001)[None]
    low, high = set_range(x, 4, False, "mse")
    step = 3 / 15
    assert low == 0
    assert abs(high - 3) < step / 2
    rounded = fake_quantise(x, *grid_over(low, high, 4, False))
    assert (x - rounded).square().mean().item() <= step**2 / 12 * 1.001


def test_both_ends_against_trying_all():
    torch.manual_seed(0)
    x = torch.cat((torch.randn(4000) - 0.8, torch.tensor([9.0, -14.0])))[None]

    def error(low, high):
        ends = (torch.tensor([low]), torch.tensor([high]))
        return (x - fake_quantise(x, *grid_over(*ends, 4, False))).square().mean().item()

    low, high = set_range(x, 4, False, "mse")
    tried = min(error(-14 * i / 60, 9 * j / 60) for i in range(5, 61, 2) for j in range(5, 61, 2))
    assert error(low.item(), high.item()) < 1.02 * tried
    assert error(low.item(), high.item()) < 0.3 * error(-14.0, 9.0)


def test_extremes_and_percentiles():
    torch.manual_seed(0)
    x = torch.randn(3, 1001) * torch.tensor([[1.0], [5.0], [0.1]]) + 0.3
    low, high = set_range(x, 8, False, "minmax")
    assert torch.equal(low, x.amin(1))
    assert torch.equal(high, x.amax(1))
    low, high = set_range(x, 8, False, "percentile", 99.0)
    torch.testing.assert_close(high, torch.quantile(x, 0.99, dim=1))
    torch.testing.assert_close(low, torch.quantile(x, 0.01, dim=1).clamp(max=0))
    low, _ = set_range(x.abs() + 1, 8, False, "percentile", 99.0)
    assert torch.equal(low, torch.zeros(3))  # zero is always in the range


def test_logits_are_rounded_for_what_softmax_makes_of_them():
    """A few logits far below the rest make squared errors large and probabilities none."""
    torch.manual_seed(0)
    logits = torch.randn(200, 10) * 2
    logits[:, 0] = -60
    divergence = {}
    for how in ("mse", "cross_entropy"):
        x = logits if how == "cross_entropy" else logits.view(1, -1)
        ends = set_range(x, 4, False, how)
        y = fake_quantise(logits.view(1, -1), *grid_over(*ends, 4, False)).view_as(logits)
        kept = logits.softmax(1)
        divergence[how] = (kept * (logits.log_softmax(1) - y.log_softmax(1))).sum(1).mean().item()
    assert divergence["cross_entropy"] < 0.5 * divergence["mse"]


def test_a_sample_keeps_extremes_and_what_lies_between():
    sample = Sample()
    torch.manual_seed(0)
    batches = [torch.randn(4, 5, 40, 40) * scale for scale in (1.0, 2.0)]
    for batch in batches:
        sample.add(batch)
    values = sample.values()
    assert values.shape[1] < 32_000
    assert values.max() == torch.stack(batches).max()
    assert values.std().item() == pytest.approx(torch.stack(batches).std().item(), rel=0.05)


# ---------------------------------------------------------------- the quantiser


@pytest.mark.parametrize("channels", [None, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_learning_computes_what_the_quantiser_does(symmetric, channels):
    torch.manual_seed(0)
    grid = Quantiser(4, symmetric, channels)
    ends = torch.tensor([1.3, 0.4, 2.0, 0.9, 1.1]) if channels else torch.tensor(1.3)
    grid.set_range(-0.7 * ends, ends)
    x = torch.randn(5, 300)
    grid.eval()
    with torch.no_grad():
        torch.testing.assert_close(grid.train()(x), grid.eval()(x), atol=1e-6, rtol=1e-6)
    (scale, zero), low, high = grid.grid()
    q = grid.integers(x)
    assert q.min() == low
    assert q.max() == high
    shape = (-1, 1) if channels else ()
    torch.testing.assert_close((q - zero.view(shape)) * scale.view(shape), grid(x))
    grid.on = False
    assert grid(x) is x


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients_of_ranges_as_lsq_writes_them(symmetric):
    """d/dscale is round(x/s) - x/s inside and the grid's end outside, over sqrt(n 2^(b-1))."""
    torch.manual_seed(0)
    grid, bits = Quantiser(4, symmetric), 4
    grid.set_range(torch.tensor(-1.5 if symmetric else 0.0), torch.tensor(1.5))
    x, weights = torch.randn(500, requires_grad=True), torch.randn(500)
    (grid.train()(x) * weights).sum().backward()
    low, high = (-7, 7) if symmetric else (0, 15)
    steps = x.detach() / (1.5 / high)
    inside = (steps.round() >= low) & (steps.round() <= high)
    by_scale = torch.where(inside, steps.round() - steps, steps.round().clamp(low, high))
    assert torch.equal(x.grad != 0, inside)
    wanted = (by_scale * weights).sum() / high / math.sqrt(500 * 2 ** (bits - 1))
    assert grid.high.grad.item() == pytest.approx(wanted.item(), rel=1e-4)


@pytest.mark.parametrize(("x", "ends"), [(-9.0, (1, 0)), (9.0, (0, 1))])
def test_what_is_cut_off_pulls_its_end(x, ends):
    grid = Quantiser(4, False)
    grid.set_range(torch.tensor(-1.0), torch.tensor(2.0))
    grid.train()(torch.full((2, 4), x)).sum().backward()
    found = torch.stack((grid.low.grad, grid.high.grad))
    torch.testing.assert_close(found, torch.tensor(ends) * 8 / math.sqrt(8 * 8))
