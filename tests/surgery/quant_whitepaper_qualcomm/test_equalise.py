"""Equalised networks compute what they did, and their channels are as large on both sides."""

import pytest
import timm
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.quant_whitepaper_qualcomm.equalise import (
    CrossLayerEqualise,
    absorb_bias,
    by_input,
)
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate

pytestmark = pytest.mark.paper("quant_whitepaper_qualcomm")


def skew(net):
    """Let channels differ a thousandfold before a ReLU, and make up for it behind."""
    scales = 10.0 ** torch.linspace(-1.5, 1.5, 8)
    with torch.no_grad():
        net.norm1.weight.mul_(scales)
        net.norm1.bias.mul_(scales)
        net.deep.weight.div_(scales.view(-1, 1, 1, 1))


def test_a_network_computes_what_it_did(net, images):
    skew(net)
    edited, coverage = CrossLayerEqualise(absorb=False).apply(net.double(), images.double())
    changed = {line.name: line.why for line in coverage}
    assert changed == {
        "stem": "its channels equalised with deep",
        "deep": "its channels equalised with wide",
        "wide": "left because scales do not reach side alone",  # a shortcut takes them, too
        "side": "left because its activation is cut off at 6",
        "last": "its channels equalised with head",  # behind a mean
    }
    wanted = net(images.double())
    torch.testing.assert_close(edited(images.double()), wanted, atol=1e-12, rtol=1e-10)
    for first, second in (("stem", "deep"), ("deep", "wide"), ("last", "head")):
        sizes = getattr(edited, first).weight.flatten(1).abs().amax(1)
        others = by_input(getattr(edited, second)).abs().amax(1)
        torch.testing.assert_close(sizes, others, atol=0, rtol=5e-3)


def test_one_grid_a_layer_serves_all_channels_then(net, images):
    skew(net)
    wanted, errors = net(images), {}
    for name, model in (
        ("as it was", net),
        ("equalised", CrossLayerEqualise(absorb=False).apply(net, images)[0]),
    ):
        edited, _ = Simulate(per_channel=False, weight_range="minmax").apply(model, images)
        errors[name] = (edited(images) - wanted).square().mean().item()
    assert errors["equalised"] < 0.1 * errors["as it was"]


def test_weights_by_input_channel():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 4, 3, groups=2)
    rows = by_input(conv)
    for i in range(6):
        group, place = divmod(i, 3)
        wanted = conv.weight[2 * group : 2 * group + 2, place]
        assert torch.equal(rows[i], wanted.flatten())
    linear = nn.Linear(5, 3)
    assert torch.equal(by_input(linear), linear.weight.T)


def test_absorbed_biases(images):
    """Exact where nothing falls below what was moved; and what norms knew moves along."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, groups=2)
    first.register_buffer("expected_mean", torch.tensor([5.0, 3.0, 0.5, -1.0]))
    first.register_buffer("expected_deviation", torch.tensor([1.0, 0.5, 1.0, 0.1]))
    model = nn.Sequential(first, nn.ReLU(), second).double()
    bright = nn.functional.relu(images.double())
    with torch.no_grad():
        first.weight.abs_()
        first.bias.copy_(torch.tensor([5.0, 3.0, 0.5, -1.0]))
        wanted = model(bright)
        absorb_bias(first, second)
        assert first.bias.tolist() == [3.0, 1.5, 0.5, -1.0]
        assert first.expected_mean.tolist() == [3.0, 1.5, 0.5, -1.0]
        torch.testing.assert_close(model(bright), wanted)


def test_biases_are_absorbed_where_nothing_is_padded(net, images):
    """In `net` that is between deep and wide; values that lie deeper than three deviations below
    the mean are cut off, so outputs change little."""
    with torch.no_grad():
        net.norm2.bias.fill_(6.0)
        net.norm2.weight.fill_(1.0)
    left, _ = CrossLayerEqualise(absorb=False).apply(net, images)
    moved, _ = CrossLayerEqualise().apply(net, images)
    lower = left.deep.bias - moved.deep.bias
    torch.testing.assert_close(lower, left.deep.expected_mean / 2)
    assert torch.equal(left.stem.bias, moved.stem.bias)
    change = (left(images) - moved(images)).abs().max() / left(images).abs().max()
    assert change < 0.02


def test_where_no_scale_passes():
    model = timm.create_model("convnext_atto", num_classes=4).eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with pytest.raises(FoveateError, match="nothing to change"):
        CrossLayerEqualise().apply(model, x)


def test_relu6_stays_whole():
    """Then only what no activation parts is equalised: projections and expansions."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=4).eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    edited, coverage = CrossLayerEqualise().apply(model, x)
    whys = {line.name: line.why for line in coverage}
    assert whys["blocks.1.0.conv_pw"] == "left because its activation is cut off at 6"
    changed = [line.name for line in coverage if line.changed]
    assert changed == ["blocks.0.0.conv_pw", "blocks.6.0.conv_pwl"]  # others end in shortcuts
    torch.testing.assert_close(edited(x), model(x), atol=1e-10, rtol=1e-8)


def test_mobilenets_with_relu_are_equalised():
    """Wholly: within each block both pairs, as the paper's figure has them."""
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv2_035", num_classes=4, act_layer=nn.ReLU).eval().double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    edited, coverage = CrossLayerEqualise(absorb=False).apply(model, x)
    changed = [line.name for line in coverage if line.changed]
    assert "blocks.1.0.conv_pw" in changed
    assert "blocks.1.0.conv_dw" in changed
    assert len(changed) >= 2 * 16
    torch.testing.assert_close(edited(x), model(x), atol=1e-10, rtol=1e-8)


def test_mistakes(net, images):
    with pytest.raises(FoveateError, match="rounds is 0"):
        CrossLayerEqualise(rounds=0)
    simulated, _ = Simulate().apply(net, images)
    with pytest.raises(FoveateError, match="equalise first"):
        CrossLayerEqualise().apply(simulated, images)
