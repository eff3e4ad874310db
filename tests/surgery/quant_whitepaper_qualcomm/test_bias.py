"""Corrected biases: means come back, measured and computed."""

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.quant_whitepaper_qualcomm import bias
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias, clipped_normal_mean
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Simulate,
    none,
    simulated,
    switched,
)

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


def means(model, images, rounded):
    """Of each layer's outputs before its ReLU, in float64, by hooks of our own."""
    found = {}

    def look(name):
        def hook(layer, args, out):
            x = args[0] if layer.input_grid is None else layer.input_grid(args[0])
            top, layer.top = layer.top, None
            on, layer.output_grid.on = layer.output_grid.on, False
            y = type(layer).forward(layer, args[0])
            layer.top, layer.output_grid.on = top, on
            assert x.shape == args[0].shape
            found[name] = y.double().mean((0, 2, 3)) if y.ndim == 4 else y.double().mean(0)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in simulated(model).items()]
    with torch.no_grad(), switched(model, (lambda grid: True) if rounded else none):
        model(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("most_bytes", [bias.MOST_BYTES, 1])
def test_no_mean_error_is_left(net, images, monkeypatch, most_bytes):
    """Whether images pass together, or batch by batch."""
    monkeypatch.setattr(bias, "MOST_BYTES", most_bytes)
    rounded, _ = Simulate(weight_bits=3, activation_bits=4).apply(net, images)
    corrected, coverage = CorrectBias().apply(rounded, [images[:9], images[9:]])
    assert all(line.changed for line in coverage)
    wanted = means(rounded, images, False)
    for model, near in ((rounded, False), (corrected, True)):
        found = means(model, images, True)
        worst = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
        assert (worst < 1e-5) == near


def test_images_may_differ_in_size(net, images):
    rounded, _ = Simulate(weight_bits=4).apply(net, images)
    batches = [images, images[..., 2:-2, 2:-2]]
    corrected, _ = CorrectBias().apply(rounded, batches)
    twice, _ = CorrectBias().apply(corrected, batches)
    for name, layer in simulated(corrected).items():
        torch.testing.assert_close(simulated(twice)[name].bias, layer.bias, rtol=0, atol=1e-5)


def test_a_cut_off_normal_variable():
    torch.manual_seed(0)
    mean, deviation = torch.tensor([0.3, -1.0, 8.0, 2.0]), torch.tensor([1.0, 0.5, 2.0, 0.0])
    x = mean + deviation * torch.randn(400_000, 4)
    for top in (float("inf"), 6.0):
        found = clipped_normal_mean(mean, deviation, top)
        torch.testing.assert_close(found, x.clamp(0, top).mean(0), atol=0.01, rtol=0)
    at_zero = clipped_normal_mean(torch.zeros(1), torch.ones(1), float("inf"))
    assert at_zero.item() == pytest.approx((2 * torch.pi) ** -0.5, rel=1e-5)


class TwoLayers(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 6, 3, groups=2)
        )


def test_the_analytic_correction_is_the_empirical_one_on_normal_data():
    """With inputs as a norm says that they are, both take the same away."""
    torch.manual_seed(0)
    model = TwoLayers()
    images = torch.randn(64, 3, 40, 40)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
        model[1].bias.uniform_(-1, 3)
        model[1].momentum = None
        model(images)
    model.eval()
    rounded, _ = Simulate(weight_bits=3, activation_bits=8).apply(model, images)
    rounded[0].weight_grid.on = False  # one error alone
    measured, _ = CorrectBias().apply(rounded, images)
    computed, coverage = CorrectBias(how="analytic").apply(rounded, images)
    assert [line.why for line in coverage] == [
        "left because its input is no layer's output alone",
        "its bias corrected (analytic)",
    ]
    shifts = [(m[3].bias - m[3].plain_bias).detach() for m in (measured, computed)]
    assert shifts[0].abs().max() > 0.1
    torch.testing.assert_close(*shifts, atol=0.05 * shifts[0].abs().max().item(), rtol=0)


def test_what_the_analytic_one_cannot_know(net, images):
    rounded, _ = Simulate().apply(net, images)
    _, coverage = CorrectBias(how="analytic").apply(rounded, images)
    assert {line.name: line.why for line in coverage} == {
        "stem": "left because its input is no layer's output alone",
        "deep": "its bias corrected (analytic)",
        "wide": "its bias corrected (analytic)",
        "side": "its bias corrected (analytic)",
        "last": "left because its input is no layer's output alone",
        "head": "left because its input is no layer's output alone",
    }
    with pytest.raises(FoveateError, match="how is 'magic'"):
        CorrectBias(how="magic")
