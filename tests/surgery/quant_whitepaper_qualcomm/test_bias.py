"""Corrected biases: means come back, measured and computed."""

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.quant_whitepaper_qualcomm import bias
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias, clipped_normal_mean
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Simulate,
    all_of_them,
    none,
    simulated,
    switched,
)

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


AS_PUBLISHED = CorrectBias(how="empirical", shrink=False)


def means(model, images, rounded, behind=False):
    """Of each layer's outputs, before or behind its ReLU, in float64, by hooks of our own."""
    found = {}

    def look(name):
        def hook(layer, args, out):
            x = args[0] if layer.input_grid is None else layer.input_grid(args[0])
            top, layer.top = layer.top, layer.top if behind else None
            on, layer.output_grid.on = layer.output_grid.on, False
            y = type(layer).forward(layer, args[0])
            layer.top, layer.output_grid.on = top, on
            assert x.shape == args[0].shape
            found[name] = y.double().mean((0, 2, 3)) if y.ndim == 4 else y.double().mean(0)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in simulated(model).items()]
    with torch.no_grad(), switched(model, all_of_them if rounded else none):
        model(images)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("how", ["behind", "empirical"])
@pytest.mark.parametrize("most_bytes", [bias.MOST_BYTES, 1])
def test_no_mean_error_is_left(net, images, monkeypatch, most_bytes, how):
    """Whether images pass together, or batch by batch."""
    monkeypatch.setattr(bias, "MOST_BYTES", most_bytes)
    rounded, _ = Simulate(weight_bits=3, activation_bits=4).apply(net, images)
    edit = CorrectBias(how=how, shrink=False)
    corrected, coverage = edit.apply(rounded, [images[:9], images[9:]])
    assert all(line.changed for line in coverage)
    wanted = means(rounded, images, False, how == "behind")
    for model, near in ((rounded, False), (corrected, True)):
        found = means(model, images, True, how == "behind")
        worst = max((found[name] - wanted[name]).abs().max().item() for name in wanted)
        assert (worst < 1e-5) == near


def test_images_may_differ_in_size(net, images):
    rounded, _ = Simulate(weight_bits=4).apply(net, images)
    batches = [images, images[..., 2:-2, 2:-2]]
    corrected, _ = AS_PUBLISHED.apply(rounded, batches)
    twice, _ = AS_PUBLISHED.apply(corrected, batches)
    for name, layer in simulated(corrected).items():
        torch.testing.assert_close(simulated(twice)[name].bias, layer.bias, rtol=0, atol=1e-5)


class Rows(nn.Module):
    """A linear layer that takes the rows of images, those of all images behind one another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(6, 40)

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).view(*x.shape[:2], -1)


def rounded_rows(images):
    """A model whose rounded weights are off, and by how much each image's means are too low."""
    rounded, _ = Simulate(weight_bits=3, activation_bits=None).apply(Rows(), images)
    error = rounded.layer.plain_weight - rounded.layer.rounded_weight()
    return rounded, (images @ error.T).mean(1).detach()


@pytest.mark.parametrize(("rows", "parts"), [(1, 1), (1, 4), (5, 1)])
def test_means_are_corrected_by_less_the_more_of_them_is_chance(rows, parts):
    images = torch.randn(24, rows, 6, generator=torch.Generator().manual_seed(0)) + 0.2
    rounded, above = rounded_rows(images)
    corrected, _ = CorrectBias().apply(rounded, list(images.chunk(parts)))
    mean, deviation = above.mean(0), above.std(0)
    factor = 1 - deviation.square().sum() / 24 / mean.square().sum()
    assert 0.1 < factor < 0.95
    torch.testing.assert_close(corrected.layer.bias, rounded.layer.bias + factor * mean)


def test_what_is_chance_alone_is_not_corrected():
    images = torch.randn(24, 1, 6, generator=torch.Generator().manual_seed(0))
    images = torch.cat([images, -images + 1e-3])
    rounded, above = rounded_rows(images)
    assert above.mean(0).abs().max() > 0
    corrected, _ = CorrectBias().apply(rounded, images)
    assert torch.equal(corrected.layer.bias, rounded.layer.bias)
    one, _ = CorrectBias().apply(rounded, images[:1])  # which cannot tell what is chance
    torch.testing.assert_close(one.layer.bias, rounded.layer.bias + above[0])


def test_few_images_do_less_harm(net):
    """On other images, over draws: what is left of the means' error."""
    others = torch.randn(256, 3, 12, 12, generator=torch.Generator().manual_seed(7))
    left = {True: 0.0, False: 0.0}
    for seed in range(5):
        few = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
        rounded, _ = Simulate(weight_bits=4).apply(net, others)
        wanted = means(rounded, others, False)
        for shrink in left:
            corrected, _ = CorrectBias(how="empirical", shrink=shrink).apply(rounded, few)
            found = means(corrected, others, True)
            left[shrink] += sum((found[n] - wanted[n]).square().sum().item() for n in wanted)
    assert left[True] < left[False]


def test_some_values_tell_how_means_follow_biases(net, images, monkeypatch):
    monkeypatch.setattr(bias, "SOME", 128)
    rounded, _ = Simulate(weight_bits=3).apply(net, images)
    corrected, _ = CorrectBias(shrink=False).apply(rounded, images)
    wanted = means(rounded, images, False, behind=True)
    before, after = (means(model, images, True, behind=True) for model in (rounded, corrected))
    off = [sum((m[n] - wanted[n]).square().sum() for n in wanted) for m in (before, after)]
    assert off[1] < 0.02 * off[0]


def test_channels_that_are_off_stay_off_and_those_that_were_come_back():
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU())
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.5
    with torch.no_grad():
        net[0].weight.fill_(1.0)
        net[0].bias.copy_(torch.tensor([-5.0, 1.0, 0.0]))
    rounded, _ = Simulate(activation_bits=None).apply(net, images)
    with torch.no_grad():
        rounded[0].bias += torch.tensor([6.0, -4.0, 0.25])  # as if rounding had done it
    corrected, _ = CorrectBias(shrink=False).apply(rounded, images)
    torch.testing.assert_close(corrected(images), net(images), atol=1e-4, rtol=0)
    assert corrected[0].bias[0].item() == pytest.approx(-images.max().item(), abs=1e-2)


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
