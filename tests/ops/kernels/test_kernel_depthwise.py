import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.kernels import DepthwiseConv2d, depthwise, depthwise_conv2d

SHAPES = [
    # channels, height, width, kernel, stride, padding, dilation
    (5, 9, 11, (3, 3), (1, 1), (1, 1), (1, 1)),
    (40, 30, 29, (7, 7), (1, 1), (3, 3), (1, 1)),
    (17, 14, 13, (5, 5), (2, 2), (2, 2), (1, 1)),
    (33, 20, 20, (3, 3), (1, 1), (2, 2), (2, 2)),
    (16, 30, 31, (31, 31), (1, 1), (15, 15), (1, 1)),
    (24, 17, 16, (1, 11), (1, 1), (0, 5), (1, 1)),
    (24, 17, 16, (11, 1), (1, 1), (5, 0), (1, 1)),
    (8, 7, 7, (9, 13), (2, 1), (3, 12), (1, 2)),
    (3, 8, 8, (1, 1), (1, 1), (0, 0), (1, 1)),
    (18, 9, 9, (1, 1), (3, 3), (0, 0), (1, 1)),  # the last pixels are under no kernel
    (20, 15, 15, (17, 19), (3, 2), (8, 9), (1, 1)),
]


@pytest.mark.parametrize(("channels", "h", "w", "kernel", "stride", "pad", "dilation"), SHAPES)
def test_it_is_the_convolution(
    library, maps, agrees, channels, h, w, kernel, stride, pad, dilation
):
    how = stride, pad, dilation
    agrees(
        lambda x, weight, bias: depthwise_conv2d(x, weight, bias, *how),
        lambda x, weight, bias: F.conv2d(x, weight, bias, *how, channels),
        (maps(3, channels, h, w), torch.randn(channels, 1, *kernel), torch.randn(channels)),
    )


@given(
    side=st.integers(0, 15),
    other=st.integers(0, 15),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    channels=st.integers(1, 40),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    last=st.booleans(),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_shape(library, agrees, side, other, size, channels, stride, dilation, last):
    kernel = 2 * side + 1, 2 * other + 1
    pad = tuple(dilation * (k // 2) for k in kernel)
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(2, channels, *size).contiguous(memory_format=layout)
    how = stride, pad, dilation
    agrees(
        lambda x, weight: depthwise_conv2d(x, weight, None, *how),
        lambda x, weight: F.conv2d(x, weight, None, *how, channels),
        (x, torch.randn(channels, 1, *kernel)),
        tolerance=1e-5,
    )


def test_bfloat16_sums_in_float32(library, maps):
    x, weight = maps(2, 24, 15, 15, dtype=torch.bfloat16), torch.randn(24, 1, 7, 7).bfloat16()
    y = depthwise_conv2d(x, weight, None, 1, 3)
    exact = F.conv2d(x.double(), weight.double(), None, 1, 3, 1, 24)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, exact.bfloat16(), rtol=2**-7, atol=1e-4)  # one rounding


def test_autocast_gives_its_type(library, maps):
    x, weight = maps(2, 24, 15, 15), torch.randn(24, 1, 7, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = depthwise_conv2d(x, weight, None, 1, 3)
        theirs = F.conv2d(x, weight, None, 1, 3, 1, 24)
    assert y.dtype == theirs.dtype == torch.bfloat16
    y.float().sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32


def test_layout_and_slices_are_kept(library):
    x = torch.randn(2, 32, 9, 9).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 1, 3, 3)
    assert depthwise_conv2d(torch.cat((x, x), 1), torch.randn(64, 1, 3, 3)).is_contiguous(
        memory_format=torch.channels_last
    )
    half = x[:, 8:24]
    torch.testing.assert_close(depthwise_conv2d(half, weight), F.conv2d(half, weight, groups=16))


@pytest.mark.parametrize("kernel", [(7, 7), (11, 1)])
def test_the_same_bits_for_any_number_of_threads(library, maps, kernel):
    x = maps(5, 40, 20, 20).requires_grad_()
    weight = torch.randn(40, 1, *kernel, requires_grad=True)
    pad = kernel[0] // 2, kernel[1] // 2
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = depthwise_conv2d(x, weight, None, 1, pad)
        found.append((y, *torch.autograd.grad(y.square().sum(), (x, weight))))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("kernel", [(5, 5), (11, 1)])
def test_a_gradient_in_another_layout(library, kernel):
    x = torch.randn(2, 20, 16, 15, requires_grad=True)
    weight = torch.randn(20, 1, *kernel, requires_grad=True)
    how = 1, (kernel[0] // 2, kernel[1] // 2)
    gradient = torch.randn_like(x).contiguous(memory_format=torch.channels_last)
    ours = depthwise_conv2d(x, weight, None, *how)
    theirs = F.conv2d(x, weight, None, *how, groups=20)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), gradient),
        torch.autograd.grad(theirs, (x, weight), gradient),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_gradients_of_gradients(library):
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    weight = torch.randn(2, 1, 3, 3, requires_grad=True)

    def penalty(conv):
        y = conv(x, weight)
        (gx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gx.square().sum(), (x, weight))

    ours = penalty(lambda x, w: depthwise_conv2d(x, w, None, 1, 1))
    theirs = penalty(lambda x, w: F.conv2d(x, w, None, 1, 1, 1, 2))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)


def test_only_wanted_gradients_are_computed(library):
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3, requires_grad=True)
    depthwise_conv2d(x, weight).sum().backward()
    assert weight.grad is not None
    frozen = weight.detach()
    y = depthwise_conv2d(x.requires_grad_(), frozen)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.usefixtures("no_library")
def test_without_kernels_it_is_pytorchs():
    x, weight = torch.randn(1, 4, 5, 5), torch.randn(4, 1, 3, 3)
    assert torch.equal(depthwise_conv2d(x, weight), F.conv2d(x, weight, groups=4))


@pytest.mark.parametrize("kernel", [(2, 2), (33, 33)])
def test_what_no_kernel_covers_is_pytorchs(library, kernel):
    x, weight = torch.randn(1, 4, 40, 40), torch.randn(4, 1, *kernel)
    assert torch.equal(depthwise_conv2d(x, weight), F.conv2d(x, weight, groups=4))


def test_mistakes_are_said(library):
    with pytest.raises(FoveateError, match=r"give \(4, 1, height, width\)"):
        depthwise_conv2d(torch.randn(1, 4, 5, 5), torch.randn(8, 4, 3, 3))
    with pytest.raises(FoveateError, match="smaller than the kernel"):
        depthwise_conv2d(torch.randn(1, 4, 5, 5), torch.randn(4, 1, 7, 7))


def test_the_module_is_a_convolution(library):
    ours = DepthwiseConv2d(6, 5, stride=2)
    theirs = nn.Conv2d(6, 6, 5, stride=2, padding=2, groups=6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x))


NHWC, NCHW = torch.channels_last, torch.contiguous_format
V3, V4 = "x86-64-v3", "x86-64-v4"


@pytest.mark.usefixtures("measured_choice")
@pytest.mark.parametrize(
    ("layout", "side", "kernel", "stride", "learns", "where"),
    [
        (NHWC, 56, (7, 7), 1, True, {V3, V4}),
        (NHWC, 56, (7, 7), 1, False, {V3, V4}),
        (NHWC, 14, (3, 3), 1, True, {V3, V4}),
        (NHWC, 14, (3, 3), 1, False, {V4}),
        (NHWC, 7, (3, 3), 1, True, {V3, V4}),
        (NHWC, 7, (3, 3), 1, False, {}),
        (NHWC, 14, (3, 3), 2, True, {}),
        (NHWC, 14, (7, 7), 2, True, {V3, V4}),
        (NHWC, 14, (11, 1), 1, False, {V3, V4}),
        (NHWC, 14, (1, 11), 1, False, {}),
        (NHWC, 14, (1, 11), 1, True, {V3, V4}),
        (NHWC, 56, (1, 11), 1, False, {V4}),
        (NCHW, 14, (3, 3), 1, False, {V3, V4}),
        (NCHW, 14, (3, 3), 2, True, {V3, V4}),
        (NCHW, 7, (3, 3), 1, False, {}),
        (NCHW, 7, (1, 11), 1, False, {V3, V4}),
    ],
)
def test_it_runs_where_it_was_measured_to_pay(
    library, layout, side, kernel, stride, learns, where, monkeypatch
):
    calls = []
    monkeypatch.setattr(depthwise, "convolve", calls.append)
    x = torch.randn(1, 16, side, side).contiguous(memory_format=layout)
    weight = torch.randn(16, 1, *kernel, requires_grad=learns)
    depthwise_conv2d(x, weight, None, stride, (kernel[0] // 2, kernel[1] // 2))
    assert bool(calls) == (library in where)
