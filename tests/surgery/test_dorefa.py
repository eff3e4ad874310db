"""DoReFa's quantisers against the formulas as written, in numpy, and their gradients against
differences of what they would be without rounding."""

import numpy as np
import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.dorefa import DoReFa, DoReFaLayer, RoundInput, quantise_unit

pytestmark = pytest.mark.paper("dorefa")


def layer_of(bits, seed=0, **how):
    torch.manual_seed(seed)
    conv = nn.Conv2d(4, 6, 3, bias=False).double()
    with torch.no_grad():
        conv.weight.mul_(8)
    return DoReFaLayer(conv, DoReFa(weight_bits=bits, **how))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_as_written(bits):
    layer = layer_of(bits)
    w = layer.weight.detach().numpy()
    r = np.tanh(w) / (2 * np.abs(np.tanh(w)).max()) + 0.5
    n = 2**bits - 1
    wanted = 2 * np.round(n * r) / n - 1
    found = layer.rounded_weight().detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert len(np.unique(found)) <= 2**bits
    assert np.abs(found).max() == 1


def test_one_bit_is_the_sign_times_the_mean_magnitude():
    layer = layer_of(1)
    w = layer.weight.detach().numpy()
    found = layer.rounded_weight()
    np.testing.assert_allclose(found.detach().numpy(), np.sign(w) * np.abs(w).mean(), rtol=1e-12)
    upstream = torch.randn_like(found)
    found.backward(upstream)
    torch.testing.assert_close(layer.weight.grad, upstream)
    with torch.no_grad():
        layer.weight.zero_()
        assert (layer.rounded_weight() > 0).all()  # no zero, not even of zeros


@pytest.mark.parametrize("bits", [2, 5])
def test_gradients_of_weights_are_those_without_rounding(bits):
    """By central differences of tanh(w) / max |tanh(w)|, the largest weight's own included."""
    layer = layer_of(bits)
    torch.manual_seed(1)
    upstream = torch.randn_like(layer.weight)
    (layer.rounded_weight() * upstream).sum().backward()

    def smooth(w):
        bent = w.tanh()
        return (bent / bent.abs().max() * upstream).sum().item()

    w = layer.weight.detach().flatten()
    places = [0, 50, int(w.abs().argmax())]
    for place in places:
        step = torch.zeros_like(w)
        step[place] = 1e-6
        ends = [smooth((w + sign * step).view_as(upstream)) for sign in (1, -1)]
        assert layer.weight.grad.flatten()[place] == pytest.approx(
            (ends[0] - ends[1]) / 2e-6, abs=1e-6
        )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("bound", ["clip", "absolute"])
def test_inputs_as_written(bits, bound):
    torch.manual_seed(0)
    x = (2 * torch.randn(1000, dtype=torch.float64)).requires_grad_()
    z = x.detach().numpy()
    bounded = np.clip(z, 0, 1) if bound == "clip" else np.minimum(np.abs(z), 1)
    n = 2**bits - 1
    found = RoundInput(bits, bound)(x)
    np.testing.assert_array_equal(found.detach().numpy(), np.round(n * bounded))
    (found / n).sum().backward()
    slope = (z > 0) & (z < 1) if bound == "clip" else (np.abs(z) < 1) * np.sign(z)
    np.testing.assert_allclose(x.grad.numpy(), slope, rtol=1e-12)


def test_a_unit_is_divided_evenly():
    x = torch.linspace(0, 1, 10_001)
    for bits in (1, 2, 3):
        found = quantise_unit(x, bits)
        assert torch.equal(found.unique(), torch.arange(2.0**bits))
        assert (found / (2**bits - 1) - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6


def test_the_layer_multiplies_what_was_rounded():
    layer = layer_of(2, activation_bits=3)
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    wanted = nn.functional.conv2d(RoundInput(3)(x) / 7, layer.rounded_weight())
    torch.testing.assert_close(layer(x), wanted)
    half = layer_of(None, activation_bits=3)
    assert torch.equal(half.rounded_weight(), half.weight)


def test_mistakes():
    for fields, message in (
        ({"weight_bits": 0}, "weight_bits is 0"),
        ({"activation_bits": 9}, "activation_bits is 9"),
        ({"weight_bits": None, "activation_bits": None}, "give bits of one"),
        ({"bound": "tanh"}, "bound is 'tanh'"),
    ):
        with pytest.raises(FoveateError, match=message):
            DoReFa(**fields)
