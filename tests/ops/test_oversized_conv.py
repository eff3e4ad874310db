"""Oversized kernels and gates, against long convolutions and sums over places."""

import pytest
import torch
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.parcnetv2 import ChannelGate, OversizedConv, SpatialGate


def gradients(op, x):
    out = op(x)
    return out, *torch.autograd.grad(out.square().sum(), (x, *op.parameters()))


@pytest.mark.paper("parcnetv2")
@pytest.mark.parametrize("size", [(6, 6), (5, 9), (1, 4)])
@pytest.mark.parametrize("zoom", [True, False])
def test_matrices_and_kernels_agree(size, zoom):
    """In value and gradient; the matrices train, the kernels serve."""
    torch.manual_seed(0)
    op = OversizedConv(3, side=6, zoom=zoom).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    for ours, twin in zip(gradients(op.train(), x), gradients(op.eval(), x), strict=True):
        torch.testing.assert_close(ours, twin)


@pytest.mark.paper("parcnetv2")
@pytest.mark.parametrize("training", [True, False])
def test_every_place_sees_every_place_through_its_own_weights(training):
    """The sum over the whole map, place by place."""
    torch.manual_seed(0)
    high, wide = 4, 4
    op = OversizedConv(2, side=4).double().train(training)
    x = torch.randn(1, 2, high, wide, dtype=torch.float64)
    down, right = op.conv_h.weight.flatten(1), op.conv_w.weight.flatten(1)
    found = op(x)
    for i in range(high):
        for j in range(wide):
            weights = (
                down[:, high - 1 - i : 2 * high - 1 - i, None]
                * right[:, None, wide - 1 - j : 2 * wide - 1 - j]
            )
            torch.testing.assert_close(found[0, :, i, j], (weights * x[0]).sum((1, 2)))


@pytest.mark.paper("parcnetv2")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [(3, 5), (8, 8), (14, 7)])
def test_other_sizes_without_zoom_are_a_padded_convolution(size, training):
    op = OversizedConv(3, side=7, zoom=False).double().train(training)
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    expected = F.conv2d(x, op.conv_h.weight, padding=(6, 0), groups=3)
    expected = F.conv2d(expected, op.conv_w.weight, padding=(0, 6), groups=3)
    torch.testing.assert_close(op(x), expected)


@pytest.mark.paper("parcnetv2")
def test_zoomed_kernels_keep_their_shape():
    """A kernel that is a straight line stays that line, at any length."""
    op = OversizedConv(1, side=5).double()
    kernel = torch.linspace(-1, 1, 9, dtype=torch.float64)[None]
    for side in (3, 5, 12):
        found = op._fitted(kernel, side)
        expected = torch.linspace(-1, 1, 2 * side - 1, dtype=torch.float64)[None]
        torch.testing.assert_close(found, expected)


def test_a_constant_map_tells_where_it_is():
    """To an oversized kernel every place is its own; a local one sees but the edge."""
    torch.manual_seed(0)
    x = torch.ones(1, 4, 14, 14)
    far = OversizedConv(4, side=14)(x)[0].flatten(1).T
    assert torch.cdist(far, far).fill_diagonal_(1).min() > 1e-6
    near = F.conv2d(x, torch.randn(4, 1, 7, 7), padding=3, groups=4)[0, :, 3:-3, 3:-3]
    torch.testing.assert_close(near, near[:, :1, :1].expand_as(near))


@pytest.mark.paper("parcnetv2")
def test_gates_weigh_one_half_by_the_other():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    op = SpatialGate(6, side=5).double().eval()
    value, gate = op.pwconv1(x).chunk(2, 1)
    seen = op.dwconv1(F.gelu(gate)) + op.dwconv2(F.gelu(gate))
    torch.testing.assert_close(op(x), op.pwconv2(value * seen))
    op = ChannelGate(6, 30).double()
    value, gate = op.fc1(x).chunk(2, 1)
    torch.testing.assert_close(op(x), op.fc2(value * F.gelu(gate)))
    assert op.fc2.bias is None
    assert op.fc2.in_channels == 15


def test_a_side_that_cannot_be():
    with pytest.raises(FoveateError, match="side"):
        OversizedConv(3, side=0)
