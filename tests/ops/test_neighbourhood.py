"""Summing taps one after the other gives what unfolding gives, in value and in gradient."""

import pytest
import torch

from foveate.errors import FoveateError
from foveate.ops.neighbourhood import mix_neighbours, mix_neighbours_unfolded


@pytest.mark.parametrize("size", [(7, 6), (8, 8), (1, 1), (5, 12)])
@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_twins_agree(size, kernel, stride, batch):
    torch.manual_seed(0)
    x = torch.randn(3, 8, *size, dtype=torch.float64, requires_grad=True)
    places = [-(-side // stride) for side in size]
    weights = torch.randn(batch, 4, kernel**2, *places, dtype=torch.float64, requires_grad=True)
    found = []
    for mix in (mix_neighbours, mix_neighbours_unfolded):
        out = mix(x, weights, kernel, stride)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, weights))))
    for ours, twin in zip(*found, strict=True):
        torch.testing.assert_close(ours, twin)


def test_constant_weights_are_a_depthwise_convolution():
    x, kernel = torch.randn(2, 6, 9, 9), torch.randn(6, 1, 3, 3)
    weights = kernel.view(1, 6, 9, 1, 1).expand(1, 6, 9, 9, 9)
    expected = torch.conv2d(x, kernel, padding=1, groups=6)
    torch.testing.assert_close(mix_neighbours(x, weights, 3), expected, atol=1e-5, rtol=1e-5)


def test_interleaved_groups_are_a_permutation_of_channels():
    x, weights = torch.randn(1, 6, 5, 5), torch.randn(1, 2, 9, 5, 5)
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    expected = torch.empty_like(x)
    expected[:, order] = mix_neighbours(x[:, order], weights, 3)
    torch.testing.assert_close(mix_neighbours(x, weights, 3, interleaved=True), expected)


def test_shapes_that_do_not_fit():
    with pytest.raises(FoveateError, match="kernel"):
        mix_neighbours(torch.zeros(1, 8, 4, 4), torch.zeros(1, 3, 9, 4, 4), 3)
    with pytest.raises(FoveateError, match="kernel"):
        mix_neighbours(torch.zeros(1, 8, 4, 4), torch.zeros(1, 2, 4, 4, 4), 2)
