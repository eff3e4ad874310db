"""Two convolutions as one compute what they did one after the other, or side by side."""

import pytest
import torch
from torch import nn

from foveate.surgery.kernels import Kernel

CHANNELS = 12


def conv(seed, kernel=3, **how):
    torch.manual_seed(seed)
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, **how, dtype=torch.float64)


def image(side=13):
    torch.manual_seed(9)
    return torch.randn(2, CHANNELS, side, side + 2, dtype=torch.float64)


@pytest.mark.parametrize("groups", [(1, 1), (12, 12), (4, 6), (12, 1), (3, 12), (1, 4)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (2, 3)])
def test_one_after_the_other(groups, stride):
    first = conv(0, (3, 5), padding=(2, 1), stride=stride[0], groups=groups[0])
    second = conv(1, (2, 3), stride=(stride[1], 1), dilation=(1, 2), groups=groups[1])
    merged = Kernel.of(first).then(Kernel.of(second))
    assert merged is not None
    assert merged.groups == torch.gcd(*map(torch.tensor, groups))
    assert merged.size == (3 + stride[0], 5 + 4 * stride[0])
    torch.testing.assert_close(merged(image()), second(first(image())))
    layer = merged.layer(torch.float64)
    torch.testing.assert_close(layer(image()), second(first(image())))
    assert layer.weight.shape[1] == CHANNELS // merged.groups


def test_padding_between_them_is_no_padding_before_them():
    second = Kernel.of(conv(1, padding=1))
    assert Kernel.of(conv(0, 3, bias=False)).then(second) is None
    assert Kernel.of(conv(0, 1)).then(second) is None  # zeros would have to be the bias
    merged = Kernel.of(point := conv(0, 1, bias=False)).then(second)
    assert merged is not None
    torch.testing.assert_close(merged(image()), second(point(image())))


@pytest.mark.parametrize("groups", [(1, 1), (12, 12), (6, 4), (12, 1)])
def test_side_by_side(groups):
    a = conv(0, 5, padding=2, groups=groups[0], stride=2)
    b = conv(1, (1, 3), padding=(0, 1), groups=groups[1], stride=2)
    given = Kernel.of(a).plus(Kernel.of(b))
    assert given.weight.numel() == Kernel.of(a).cost_of_sum(Kernel.of(b))
    torch.testing.assert_close(given(image()), a(image()) + b(image()))


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_a_smaller_one_inside(groups):
    layer = conv(0, (5, 3), padding=(2, 1), groups=groups)
    small = Kernel.identity(layer).scaled(*torch.randn(2, CHANNELS, dtype=torch.float64))
    given = Kernel.of(layer).plus_inside(small, (2, 1))
    torch.testing.assert_close(given(image()), layer(image()) + small(image()))
    assert given.groups == groups


def test_a_scale_and_a_shift():
    layer = conv(0)
    scale, shift = torch.randn(2, CHANNELS, dtype=torch.float64)
    given = Kernel.of(layer).scaled(scale, shift)(image())
    expected = layer(image()) * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(given, expected)
