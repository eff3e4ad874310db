"""Shifted and scaled channels: exact before rounding, and rounded with less error."""

import copy

import pytest
import torch
from timm.layers.norm import LayerNorm2d
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.surgery.mptq_vit.simulate import SimulateTransformer
from foveate.surgery.mptq_vit.smooth import ShiftAndSmooth, transform

pytestmark = pytest.mark.paper("mptq_vit")


def test_the_transform_is_exact_and_has_its_closed_form():
    """Y W + b = ((Y - μ) / ε) (ε W) + (b + μ W), all of it folded into norm and layer."""
    torch.manual_seed(0)
    norm, layers = nn.LayerNorm(6).double(), [nn.Linear(6, 4).double(), nn.Linear(6, 3).double()]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    gamma, beta = norm.weight.detach().clone(), norm.bias.detach().clone()
    w, b = layers[0].weight.detach().clone(), layers[0].bias.detach().clone()
    x = torch.randn(5, 7, 6, dtype=torch.float64)
    y, wanted = norm(x), [layer(norm(x)) for layer in layers]
    shift, scale = torch.randn(6).double(), torch.rand(6).double() + 0.1
    transform(norm, layers, shift, scale)
    torch.testing.assert_close(norm(x), (y - shift) / scale, rtol=1e-12, atol=1e-12)
    for layer, value in zip(layers, wanted, strict=True):
        torch.testing.assert_close(layer(norm(x)), value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.weight.detach(), gamma / scale)
    torch.testing.assert_close(norm.bias.detach(), (beta - shift) / scale)
    torch.testing.assert_close(layers[0].weight.detach(), w * scale)
    torch.testing.assert_close(layers[0].bias.detach(), b + w @ shift)


@pytest.mark.parametrize("shift", ["mean", "middle", None])
def test_timms_transformers_compute_what_they_did(net, images, name, shift):
    net, images = net.double(), images.double()
    ours, coverage = ShiftAndSmooth(shift=shift).apply(net, [images[:4], images[4:]])
    torch.testing.assert_close(ours(images), net(images), rtol=1e-9, atol=1e-9)
    left = {line.name for line in coverage if not line.changed}
    assert left == ({"patch_embed.norm"} if "swin" in name else set())
    assert sum(line.changed for line in coverage) == (10 if "swin" in name else 5)
    if "swin" in name:
        assert net.layers[1].downsample.reduction.bias is None
        assert ours.layers[1].downsample.reduction.bias is not None


def test_channels_come_to_lie_around_zero_as_large_as_their_weights(net, images):
    """SmoothQuant's balance at one half: |y| / scale = |w| scale."""
    for shift in ("mean", "middle"):
        ours, coverage = ShiftAndSmooth(shift=shift).apply(net, images)
        names = [line for line in coverage if line.changed and line.name.endswith("norm2")]
        seen = []
        for line in names:
            ours.get_submodule(line.name).register_forward_hook(
                lambda module, args, out, seen=seen: seen.append(out.flatten(0, -2))
            )
        ours(images)
        for line, values in zip(names, seen, strict=True):
            layer = ours.get_submodule(line.why.removeprefix("made up for by "))
            largest = layer.weight.abs().amax(0)
            torch.testing.assert_close(values.abs().amax(0), largest, rtol=1e-3, atol=1e-4)
            middle = values.mean(0) if shift == "mean" else values.amin(0) + values.amax(0)
            torch.testing.assert_close(middle, torch.zeros_like(middle), rtol=0, atol=2e-4)


@pytest.mark.parametrize("bits", [4, 6])
def test_what_is_shifted_is_rounded_with_less_error(net, images, bits):
    wanted, errors = net(images), {}
    for name, edit in (
        ("plain", None),
        ("smoothed", ShiftAndSmooth(shift=None)),
        ("shifted", ShiftAndSmooth()),
    ):
        model = edit.apply(net, images)[0] if edit else net
        rounded = SimulateTransformer(
            weight_bits=bits, activation_bits=bits, activation_range="minmax"
        )
        found = rounded.apply(model, images)[0](images)
        errors[name] = (found - wanted).square().mean().item()
    assert errors["shifted"] < errors["smoothed"]
    assert errors["shifted"] < 0.7 * errors["plain"]


class Twice(nn.Module):
    """A norm whose values go elsewhere, one that is padded, one of maps, one called twice."""

    def __init__(self):
        super().__init__()
        self.shared, self.padded, self.often = (nn.LayerNorm(4) for _ in range(3))
        self.maps, self.bare = LayerNorm2d(4), nn.LayerNorm(4, elementwise_affine=False)
        self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))
        self.conv, self.around = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.unused = nn.LayerNorm(4)

    def forward(self, x):
        y = self.shared(x)
        x = x + y + self.a(y)
        x = self.b(F.pad(self.padded(x), (0, 0, 1, 1)))[:, 1:]
        x = self.c(self.often(self.often(x)))
        x = self.d(self.bare(x))
        x = self.conv(self.maps(x.mT.unflatten(2, (3, 3))))
        return self.around(x)


def test_what_cannot_be_made_up_for_says_why():
    torch.manual_seed(0)
    net, x = Twice().eval(), torch.randn(2, 8, 4)
    ours, coverage = ShiftAndSmooth().apply(net, x)
    torch.testing.assert_close(ours(x), net(x))
    why = {line.name: line.why for line in coverage}
    assert why["maps"] == "made up for by conv"
    assert "scales do not reach b alone" in why["padded"]
    assert "not only layers" in why["shared"]
    assert "not only layers" in why["often"]
    assert "no scale and shift" in why["bare"]
    assert "did not call it" in why["unused"]
    _, coverage = ShiftAndSmooth(skip=("pad*",)).apply(net, x)
    assert {line.name: line.why for line in coverage}["padded"] == "left because skip names it"


def test_mistakes(net, images):
    for fields, message in (
        ({"shift": "median"}, "shift is 'median'"),
        ({"strength": 1.5}, "strength is 1.5"),
    ):
        with pytest.raises(FoveateError, match=message):
            ShiftAndSmooth(**fields)
    rounded, _ = SimulateTransformer().apply(copy.deepcopy(net), images)
    with pytest.raises(FoveateError, match="smooth first"):
        ShiftAndSmooth().apply(rounded, images)
