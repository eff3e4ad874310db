"""ReSTE's slopes against differences of the power function, and its indicators as written."""

import numpy as np
import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.reste import (
    Binarise,
    BinaryLayer,
    Sign,
    estimating_error,
    gradient_variance,
    root,
)

pytestmark = pytest.mark.paper("reste")

POWERS = (1.0, 1.5, 3.0, 10.0)


def at(power, clip=1.5, near=0.1):
    sign = Sign(clip, near)
    sign.power = power
    return sign


def slopes(sign, x):
    x = x.clone().requires_grad_()
    out = sign(x)
    assert torch.equal(out.detach(), torch.sign(x.detach()))
    out.backward(torch.ones_like(out))
    return x.grad


@pytest.mark.parametrize("power", POWERS)
def test_slopes_are_those_of_the_power_function(power):
    x = torch.tensor([0.1001, 0.15, 0.5, 1.0, 1.3, 1.499], dtype=torch.float64)
    x = torch.cat([-x, x])
    step = 1e-6
    differences = (root(x + step, power) - root(x - step, power)) / (2 * step)
    torch.testing.assert_close(slopes(at(power), x), differences, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("power", POWERS)
def test_they_are_cut_off_at_both_ends(power):
    """Near zero the slope is that of the line from f(-m) to f(m); beyond t there is none."""
    m = torch.tensor(0.1, dtype=torch.float64)
    line = (root(m, power) - root(-m, power)) / (2 * m)
    inner = torch.tensor([-0.1, -0.05, 0.0, 1e-12, 0.1], dtype=torch.float64)
    torch.testing.assert_close(slopes(at(power), inner), line.expand(5))
    outer = torch.tensor([-4.0, -1.501, 1.501, 1e9], dtype=torch.float64)
    assert not slopes(at(power), outer).any()
    assert slopes(at(power, clip=5.0), outer)[0] > 0


def test_with_a_power_of_one_it_is_straight_through():
    x = torch.linspace(-3, 3, 601)
    assert torch.equal(slopes(at(1.0, clip=1.0), x), (x.abs() <= 1).float())


def test_weights_are_signs_times_their_mean_magnitude():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, bias=False).double()
    layer = BinaryLayer(conv, Binarise())
    layer.sign.power = 2.5
    w = conv.weight.detach().numpy().copy()
    found = layer.rounded_weight()
    np.testing.assert_allclose(found.detach().numpy(), np.sign(w) * np.abs(w).mean(), rtol=1e-12)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    g, size = upstream.numpy(), np.abs(w)
    slope = np.where(size <= 0.1, 0.1 ** (1 / 2.5) / 0.1, size ** (1 / 2.5 - 1) / 2.5)
    of_signs = g * np.abs(w).mean() * slope * (size <= 1.5)
    of_mean = (g * np.sign(w)).sum() * np.sign(w) / w.size
    np.testing.assert_allclose(layer.weight.grad.numpy(), of_signs + of_mean, rtol=1e-9)


def test_inputs_are_signs():
    torch.manual_seed(0)
    layer = BinaryLayer(nn.Linear(8, 4), Binarise())
    x = torch.randn(3, 8)
    wanted = nn.functional.linear(x.sign(), layer.rounded_weight(), layer.bias)
    torch.testing.assert_close(layer(x), wanted)
    plain = BinaryLayer(nn.Linear(8, 4), Binarise(activations=False))
    wanted = nn.functional.linear(x, plain.rounded_weight(), plain.bias)
    torch.testing.assert_close(plain(x), wanted)


def test_indicators_as_written():
    torch.manual_seed(0)
    z, g = torch.randn(500, dtype=torch.float64), torch.randn(500, dtype=torch.float64)
    f = np.sign(z.numpy()) * np.abs(z.numpy()) ** (1 / 3)
    wanted = np.sqrt(np.square(np.sign(z.numpy()) - f).sum())
    assert estimating_error(z, 3.0) == pytest.approx(wanted)
    assert gradient_variance(g) == pytest.approx(np.abs(g.numpy()).var(ddof=1))


def test_a_larger_power_estimates_better_and_less_stably():
    """The equilibrium: for one and the same gradient from above."""
    torch.manual_seed(0)
    z, upstream = 0.5 * torch.randn(10_000), torch.rand(10_000)
    errors = [estimating_error(z, power) for power in POWERS]
    variances = [gradient_variance(upstream * at(power).slope(z)) for power in POWERS]
    assert errors == sorted(errors, reverse=True)
    assert variances == sorted(variances)
    assert errors[-1] < 0.5 * errors[0]
    assert variances[2] > 2 * variances[0]


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Conv2d(8, 8, 1),
            nn.Flatten(),
            nn.Linear(8 * 16, 4),
        )


def test_the_table_tells_of_inputs_that_are_never_negative():
    torch.manual_seed(0)
    model, coverage = Binarise().apply(Net().train(), torch.randn(4, 3, 8, 8))
    told = {line.name: line.why for line in coverage if line.changed}
    assert told == {
        "2": "binary weights, binary inputs",
        "4": "binary weights, binary inputs; they are never negative, so they become 0 and 1",
    }
    assert model.training
    _, coverage = Binarise(activations=False).apply(Net(), torch.randn(4, 3, 8, 8))
    assert coverage[2].why == "binary weights, float inputs"


def test_mistakes():
    for fields in ({"near": 0.0}, {"near": 2.0}, {"clip": 0.05}):
        with pytest.raises(FoveateError, match="give 0 < near < clip"):
            Binarise(**fields)
