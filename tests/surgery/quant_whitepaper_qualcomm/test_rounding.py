"""AdaRound against nearest rounding, and against trying every way to round."""

import itertools

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.columns import by_group, columns
from foveate.surgery.layers import geometry_of, product
from foveate.surgery.quant_whitepaper_qualcomm.inputs import inputs_of, outputs_at
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate, simulated

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2), groups=2),
        nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2),
        nn.Conv2d(4, 4, 3, padding="valid", groups=4),
        nn.Linear(7, 3),
    ],
    ids=["strided", "same", "depthwise", "linear"],
)
def test_columns_give_what_layers_compute(layer):
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 9, 8)
    geometry, generator = geometry_of(layer), torch.Generator().manual_seed(3)
    with torch.no_grad():
        wanted = product(x, layer.weight, None, geometry)
        rows = columns(x, layer.weight, geometry, 10**6, generator)
        found = rows @ by_group(layer.weight, geometry).transpose(1, 2)
    wanted = wanted.transpose(1, 2) if wanted.ndim == 3 else wanted.flatten(2)
    groups, places, outs = found.shape
    found = found.view(groups, 2, places // 2, outs).permute(1, 0, 3, 2).reshape(wanted.shape)
    torch.testing.assert_close(found, wanted)
    few = columns(x, layer.weight, geometry, 3, generator)
    assert few.shape == (groups, 6, rows.shape[2])
    assert all((rows == row).all(2).any() for row in few[:1, :, :].unbind(1))


def errors_of(model, images):
    found = {}
    for name, layer in simulated(model).items():
        inputs = inputs_of(model, layer, [images], 16, 0)
        with torch.no_grad():
            wanted = outputs_at(layer, inputs.plain, layer.plain_weight, layer.plain_bias)
            got = outputs_at(layer, inputs.rounded, layer.rounded_weight(), layer.bias)
        found[name] = (got - wanted).square().sum((0, 2)).mean().item()
    return found


@pytest.mark.parametrize("activations", [None, 8])
def test_outputs_are_nearer_than_nearest_roundings(net, images, activations):
    nearest, _ = Simulate(weight_bits=3, activation_bits=activations).apply(net, images)
    rounded, coverage = AdaRound(steps=300).apply(nearest, images)
    assert [line.changed for line in coverage] == [True] * 6
    first = next(iter(simulated(nearest)))
    before, after = errors_of(nearest, images), errors_of(rounded, images)
    assert after[first] <= before[first]  # the first layer's inputs are the same
    assert sum(after.values()) < 0.85 * sum(before.values())
    wanted = net(images)
    errors = [(model(images) - wanted).square().mean().item() for model in (nearest, rounded)]
    assert errors[1] < 0.6 * errors[0]
    for layer, other in zip(simulated(rounded).values(), simulated(nearest).values(), strict=True):
        (scale, _), _, _ = layer.weight_grid.grid()
        steps = layer.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1))
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        began = other.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1))
        assert (steps - began.clamp(-3, 3)).abs().max() < 1 + 1e-4  # to a neighbour on the grid
        assert torch.equal(layer.plain_weight, other.plain_weight)


def test_the_best_of_all_ways_to_round():
    """Of one output with eight weights, all 256 ways can be tried."""
    torch.manual_seed(1)
    x = torch.randn(400, 8) @ torch.randn(8, 8)  # what comes in is correlated
    model = nn.Sequential(nn.Linear(8, 1))
    edit = Simulate(weight_bits=3, activation_bits=None)
    nearest, _ = edit.apply(model, x)
    rounded, _ = AdaRound(steps=1500, places=1).apply(nearest, x)
    layer = rounded[0]
    (scale, _), low, high = layer.weight_grid.grid()
    down = (layer.plain_weight / scale).floor()
    ways = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    candidates = (down + ways).clamp(low, high) * scale
    errors = (x @ (candidates - layer.plain_weight).T).square().mean(0)
    found = (x @ (layer.weight - layer.plain_weight).detach().T).square().mean()
    begun = (x @ (nearest[0].rounded_weight() - layer.plain_weight).detach().T).square().mean()
    assert found <= errors.sort().values[4]
    assert found < 0.8 * begun


def test_mistakes():
    for fields in ({"steps": 0}, {"rate": 0.0}, {"batch": -1}, {"strength": 0}):
        with pytest.raises(FoveateError, match=f"{next(iter(fields))} is "):
            AdaRound(**fields)
