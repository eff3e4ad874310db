import pytest
import torch

from foveate.ops.kernels import layer_norm_channels
from foveate.ops.kernels.layer_norm import plain_layer_norm_channels


@pytest.mark.parametrize(("channels", "side"), [(3, 5), (24, 14), (96, 8), (70, 9), (130, 3)])
def test_it_is_the_norm_of_channels(library, agrees, channels, side):
    x = torch.randn(2, channels, side, side + 1) + 3
    agrees(
        layer_norm_channels,
        plain_layer_norm_channels,
        (x, torch.randn(channels), torch.randn(channels)),
    )


def test_a_bias_need_not_be(library, agrees):
    agrees(
        layer_norm_channels,
        plain_layer_norm_channels,
        (torch.randn(2, 12, 7, 7), torch.randn(12)),
    )


def test_a_large_mean_drowns_no_more_than_in_pytorch(library):
    x, weight = torch.randn(1, 64, 8, 8) * 1e-2 + 100, torch.ones(64)
    exact = plain_layer_norm_channels(x.double(), weight.double())
    ours = (layer_norm_channels(x, weight).double() - exact).abs().max()
    theirs = (plain_layer_norm_channels(x, weight).double() - exact).abs().max()
    assert ours <= 2 * theirs


def test_bfloat16(library):
    x = torch.randn(2, 40, 6, 7).bfloat16()
    weight = torch.randn(40)
    y = layer_norm_channels(x, weight, None)
    exact = plain_layer_norm_channels(x.double(), weight.double(), None)
    torch.testing.assert_close(y, exact.bfloat16(), rtol=2**-7, atol=1e-6)  # one rounding


def test_channels_last_is_pytorchs(library):
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(8)
    assert torch.equal(layer_norm_channels(x, weight), plain_layer_norm_channels(x, weight))


def test_gradients_of_gradients(library):
    x, weight = torch.randn(1, 4, 3, 3, requires_grad=True), torch.randn(4)

    def penalty(norm):
        (gx,) = torch.autograd.grad(norm(x, weight).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gx.square().sum(), x)[0]

    ours, theirs = penalty(layer_norm_channels), penalty(plain_layer_norm_channels)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)
