"""Convolutions that are computed in other ways, against torch's."""

import pytest
import torch
from torch.nn import functional as F

from foveate.ops.im2win import im2win, im2win_conv2d, workspace
from foveate.ops.sliding_window_conv import sliding_conv2d, sliding_sum


@pytest.mark.paper("im2win")
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(1, 1, 0), (3, 1, 1), (5, 2, 2), (7, 3, 0)]
)
def test_im2win_is_a_convolution(kernel, stride, padding):
    x = torch.randn(2, 3, 13, 17, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64)
    ours = im2win_conv2d(x, weight, bias, stride, padding)
    theirs = F.conv2d(x, weight, bias, stride, padding)
    torch.testing.assert_close(ours, theirs)
    signal = torch.randn_like(ours)
    for one, other in zip(
        torch.autograd.grad(ours, (x, weight), signal),
        torch.autograd.grad(theirs, (x, weight), signal),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (5, 2, 0)])
def test_workspaces_are_what_is_written(kernel, stride, padding):
    x = torch.randn(2, 3, 16, 20)
    sizes = workspace((2, 3, 16, 20), kernel, stride, padding)
    assert im2win(x, kernel, stride, padding).numel() == sizes["im2win"]
    assert F.unfold(x, kernel, padding=padding, stride=stride).numel() == sizes["im2col"]


@pytest.mark.paper("sliding_window_conv")
@pytest.mark.parametrize("kernel", [1, 3, 6])
def test_sliding_is_a_convolution(kernel):
    x = torch.randn(2, 3, 12, 15, dtype=torch.float64)
    dense = torch.randn(5, 3, kernel, kernel, dtype=torch.float64)
    torch.testing.assert_close(sliding_conv2d(x, dense, 1), F.conv2d(x, dense, padding=1))
    deep = torch.randn(3, 1, kernel, kernel, dtype=torch.float64)
    expected = F.conv2d(x, deep, padding=1, groups=3)
    torch.testing.assert_close(sliding_conv2d(x, deep, 1), expected)


@pytest.mark.paper("sliding_window_conv")
@pytest.mark.parametrize("window", range(1, 12))
def test_sliding_sums(window):
    x = torch.randn(3, 11, dtype=torch.float64)
    torch.testing.assert_close(sliding_sum(x, window), x.unfold(-1, window, 1).sum(-1))
