"""Simulated models against the integers that they stand for, and against what they were."""

import copy
import json

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.lineage import lineage
from foveate.surgery.quant_whitepaper import Quantise, QuantisedLayer
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.equalise import CrossLayerEqualise
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser
from foveate.surgery.quant_whitepaper_qualcomm.ranges import norm_range
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Simulate,
    none,
    simulated,
    switched,
)
from foveate.surgery.replay import replay
from foveate.surgery.storage import Store

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


@pytest.mark.parametrize("channels", [True, False])
def test_with_extremes_it_is_what_integers_compute(net, images, channels):
    """`Quantise` runs in integers; from the same ranges the simulation gives the same numbers."""
    net, images = net.double(), images.double()
    fields = {"per_channel": channels, "weight_bits": 6}
    integers, _ = Quantise(decay=None, **fields).apply(net, images)
    ours, coverage = Simulate(weight_range="minmax", activation_range="minmax", **fields).apply(
        net, images
    )
    assert all(line.changed for line in coverage)
    assert coverage[0].why == "6-bit weights, 8-bit activations, with norm1 folded in"
    theirs = {n: m for n, m in integers.named_modules() if isinstance(m, QuantisedLayer)}
    for name, layer in simulated(ours).items():
        other = theirs[name]
        assert (layer.input_grid is None) == (other.input is None)
        (scale, _), _, _ = layer.weight_grid.grid()
        wanted = other.integers()
        torch.testing.assert_close(layer.output_grid.grid()[0][0], wanted.output_scale)
        on_grid = layer.weight_grid.integers(layer.weight if channels else layer.weight[None])
        assert torch.equal(on_grid.view_as(wanted.weight), wanted.weight.int())
        assert len(scale) == (len(layer.weight) if channels else 1)
    torch.testing.assert_close(ours(images), integers(images), atol=0.02, rtol=0.02)


class Ends(nn.Module):
    """Two layers between which lies something, and a shortcut around both."""

    def __init__(self, between):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1)
        self.between = between

    def forward(self, x):
        return x + self.last(self.between(self.norm(self.first(x))))


@pytest.mark.parametrize(
    ("between", "taken"),
    [
        (nn.SiLU(), False),
        (nn.GELU(), False),
        (nn.Hardswish(inplace=True), False),
        (nn.AvgPool2d(1), False),
        (nn.ReLU(), True),
        (nn.MaxPool2d(1), True),
    ],
)
def test_outputs_that_no_layer_takes_need_not_be_rounded(between, taken):
    torch.manual_seed(0)
    net, images = Ends(between).eval(), torch.randn(4, 3, 5, 5)
    rounded, _ = Simulate().apply(net, images)
    assert rounded.first.output_grid is not None
    assert rounded.last.output_grid is not None
    ours, _ = Simulate(every_output=False).apply(net, images)
    assert (ours.first.output_grid is not None) == taken
    assert (ours.last.input_grid is None) == taken
    assert ours.last.output_grid is None
    again = replay(copy.deepcopy(net), lineage(ours))
    again.load_state_dict(ours.state_dict())
    assert torch.equal(again(images), ours(images))


class Joined(nn.Module):
    """A network whose last layer takes what two others made, side by side."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.last = (nn.Conv2d(c, 3, 1) for c in (3, 3, 6))

    def forward(self, x):
        return self.last(torch.cat([self.left(x).relu(), self.right(x)], 1))


def test_outputs_that_are_concatenated_are_rounded_in_any_case():
    ours, _ = Simulate(every_output=False).apply(Joined().eval(), torch.randn(4, 3, 5, 5))
    rounded = {name: layer.output_grid is not None for name, layer in simulated(ours).items()}
    assert rounded == {"left": True, "right": True, "last": False}


def test_layers_whose_takers_stay_as_they_are_need_not_be_rounded():
    net = Ends(nn.ReLU()).eval()
    ours, _ = Simulate(every_output=False, skip=("last",)).apply(net, torch.randn(4, 3, 5, 5))
    assert ours.first.output_grid is None


class Placed(nn.Module):
    """A network that adds to its maps a layer's view of places."""

    def __init__(self):
        super().__init__()
        self.layer, self.places = nn.Conv2d(3, 5, 1), nn.Conv2d(2, 5, 1)

    def forward(self, x):
        places = torch.arange(8.0).view(1, 2, 2, 2).sin().repeat(1, 1, 4, 4)
        return self.layer(x) + self.places(places)


def test_layers_that_no_image_reaches_stay():
    model, coverage = Simulate().apply(Placed().eval(), torch.randn(4, 3, 8, 8))
    assert [(line.name, line.changed) for line in coverage] == [("layer", True), ("places", False)]
    assert "no image" in coverage[1].why
    assert type(model.places) is nn.Conv2d


def test_what_it_was_stays_inside(net, images):
    ours, _ = Simulate(weight_bits=3, activation_bits=3).apply(net, images)
    wanted, training = net(images), [m.training for m in ours.modules()]
    with switched(ours, none):
        torch.testing.assert_close(ours(images), wanted, atol=1e-5, rtol=1e-5)
    assert (ours(images) - wanted).abs().max() > 0.01
    assert [m.training for m in ours.modules()] == training
    assert all(m.on for m in ours.modules() if isinstance(m, Quantiser))


def test_setters_and_bits_matter(net, images):
    """Least squared error beats extremes at few bits; affine grids have a point more."""
    wanted, found = net(images), {}
    for how in ("minmax", "mse", "percentile"):
        edit = Simulate(weight_bits=3, activation_bits=None, weight_range=how, percentile=95.0)
        ours, _ = edit.apply(net, images)
        found[how] = sum(
            (layer.rounded_weight() - layer.plain_weight).square().sum().item()
            for layer in simulated(ours).values()
        )
        assert not [m for m in ours.modules() if isinstance(m, Quantiser) and not m.high.ndim]
    assert found["mse"] < min(found["minmax"], found["percentile"])
    affine, _ = Simulate(weight_bits=3, symmetric=False).apply(net, images)
    assert max(len(m.rounded_weight()[0].unique()) for m in simulated(affine).values()) == 8
    whole, _ = Simulate(weight_bits=8, activation_bits=8, logits_range="cross_entropy").apply(
        net, images
    )
    assert (whole(images) - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_ranges_that_norms_tell(net, images):
    """Six deviations to each side, and where no norm tells, extremes."""
    ours, _ = Simulate(activation_range="norm").apply(net, images)
    extremes, _ = Simulate(activation_range="minmax").apply(net, images)
    high = (net.norm3.bias + 6 * net.norm3.weight.abs()).max()
    assert ours.wide.output_grid.high == high
    assert ours.wide.output_grid.low == 0
    for name in ("side", "head"):
        ends = (getattr(model, name).output_grid.high for model in (ours, extremes))
        assert torch.equal(*ends)
    low, high = norm_range(torch.tensor([1.0, -3.0]), torch.tensor([0.5, 1.0]), None)
    assert (low, high) == (-9, 4)
    assert norm_range(torch.tensor([9.0]), torch.tensor([1.0]), 6.0) == (0, 6)


def test_training_learns_weights_and_ranges(net, images):
    """Begun with ranges far too narrow, they come to what serves."""
    wanted = net(images).detach()
    ours, _ = Simulate(activation_bits=4).apply(net, images)
    for layer in simulated(ours).values():
        layer.output_grid.high.data.mul_(0.3)
    ends = {name: p.detach().clone() for name, p in ours.named_parameters() if "grid" in name}

    def error():
        with torch.no_grad():
            return (ours.eval()(images) - wanted).square().mean().item()

    before = error()
    optimizer = torch.optim.Adam(ours.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (ours.train()(images) - wanted).square().mean().backward()
        optimizer.step()
    assert error() < 0.2 * before
    assert ours.head.output_grid.high > 1.2 * ends["head.output_grid.high"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_edits_follow_one_another_and_load_again(net, images, layout):
    model, fresh = net.to(memory_format=layout), copy.deepcopy(net)
    for edit in (
        CrossLayerEqualise(),
        Simulate(weight_bits=4, per_channel=False),
        AdaRound(steps=20),
        CorrectBias(),
        Store(),
    ):
        model, _ = edit.apply(model, images)
    steps = json.loads(json.dumps(lineage(model)))
    assert [step["edit"] for step in steps] == [
        "CrossLayerEqualise",
        "Simulate",
        "AdaRound",
        "CorrectBias",
        "Store",
    ]
    again = replay(fresh, steps)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images), model(images))


def test_mistakes(net, images):
    for fields, message in (
        ({"weight_bits": 1}, "weight_bits is 1"),
        ({"weight_bits": None}, "weight_bits is None"),
        ({"activation_bits": 9}, "activation_bits is 9"),
        ({"weight_range": "best"}, "weight_range is 'best': give one of minmax"),
        ({"activation_range": "cross_entropy"}, "activation_range is 'cross_entropy'"),
        ({"percentile": 50}, "percentile is 50"),
    ):
        with pytest.raises(FoveateError, match=message):
            Simulate(**fields)
    with pytest.raises(FoveateError, match="skip names 'nose'"):
        Simulate(skip=("nose",)).apply(net, images)
    ours, _ = Simulate(skip=("head",)).apply(net, images)
    assert isinstance(ours.head, nn.Linear)
    with pytest.raises(FoveateError, match="quantised already"):
        Simulate().apply(ours, images)
    with pytest.raises(FoveateError, match="quantised already"):
        Quantise().apply(ours, images)
    for edit in (AdaRound(), CorrectBias()):
        with pytest.raises(FoveateError, match="Simulate has made: apply it first"):
            edit.apply(net, images)
