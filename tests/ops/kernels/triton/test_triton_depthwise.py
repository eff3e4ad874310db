"""Depthwise convolution in Triton gives what PyTorch's does, and the same bits each time."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from foveate import FoveateError
from foveate.ops.kernels.triton import depthwise, depthwise_conv2d, weight_gradient

ONE = (1, 1)


def compare(agree, draw, shape, kernel, *geometry, bias=True, channels_last=False, dtype=None):
    dtype = dtype or torch.float32
    x = draw(*shape, channels_last=channels_last, dtype=dtype)
    learnt = [draw(shape[1], 1, *kernel, dtype=dtype)]
    learnt += [draw(shape[1], dtype=dtype)] * bias

    def ours(x, weight, bias=None):
        return depthwise_conv2d(x, weight, bias, *geometry)

    def theirs(x, weight, bias=None):
        return F.conv2d(x, weight, bias, *geometry, groups=shape[1])

    agree(ours, theirs, [x, *learnt])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation"),
    [
        ((3, 3), ONE, ONE, ONE),
        ((1, 5), ONE, (0, 2), ONE),
        ((5, 1), ONE, (2, 0), ONE),
        ((4, 3), (2, 3), (2, 0), ONE),
        ((3, 3), (2, 1), (2, 3), (1, 2)),
        ((3, 2), (1, 2), (0, 4), (2, 1)),
        ((1, 1), (2, 2), (0, 0), ONE),
    ],
)
def test_result_and_gradients_are_pytorchs(
    agree, draw, kernel, stride, padding, dilation, channels_last
):
    geometry = stride, padding, dilation
    compare(agree, draw, (2, 2, 6, 7), kernel, *geometry, channels_last=channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_add_up_in_float32_or_better(agree, draw, dtype):
    compare(agree, draw, (1, 2, 4, 5), (3, 2), ONE, ONE, bias=False, dtype=dtype)


@pytest.mark.slow
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(*[st.integers(1, n) for n in (2, 5, 9, 9)]),
    kernel=st.tuples(st.sampled_from((1, 3, 5)), st.sampled_from((1, 3, 5))),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    channels_last=st.booleans(),
)
def test_any_geometry(agree, draw, shape, kernel, stride, dilation, channels_last):
    padding = tuple(d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
    geometry = stride, padding, dilation
    compare(agree, draw, shape, kernel, *geometry, channels_last=channels_last)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [(7, 7), (31, 31), (1, 31), (31, 1)])
def test_large_kernels(agree, draw, kernel):
    padding = kernel[0] // 2, kernel[1] // 2
    compare(agree, draw, (2, 2, 8, 8), kernel, ONE, padding)


def test_a_program_adds_up_several_images_and_blocks_of_columns(agree, draw, monkeypatch):
    monkeypatch.setattr(weight_gradient, "PROGRAMS", 1)
    compare(agree, draw, (3, 1, 2, 70), (1, 3), ONE, (0, 1))
    compare(agree, draw, (3, 2, 2, 18), (3, 1), ONE, (1, 0), channels_last=True)


@pytest.mark.parametrize("stride", [ONE, (2, 1)])
def test_gradients_have_gradients(draw, stride):
    x, weight, bias = (draw(*s, dtype=torch.float64) for s in ((1, 1, 4, 3), (1, 1, 2, 3), (1,)))
    rule = stride, ONE, ONE

    def penalty(convolve):
        inputs = x, weight, bias
        first = torch.autograd.grad(convolve().sin().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    ours = penalty(lambda: depthwise_conv2d(x, weight, bias, *rule))
    torch.testing.assert_close(ours, penalty(lambda: F.conv2d(x, weight, bias, *rule)))


def test_autocast_gives_its_type(draw, device):
    x, weight = draw(1, 2, 3, 4), draw(2, 1, 3, 3)
    with torch.autocast(device, torch.bfloat16):
        got, want = depthwise_conv2d(x, weight), F.conv2d(x, weight, groups=2)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=0.02, atol=0.02)
    assert torch.autograd.grad(got.sum(), weight)[0].dtype == torch.float32


def test_maps_with_gaps_and_expanded_gradients(draw):
    whole, weight = draw(2, 4, 3, 8), draw(2, 1, 3, 3)
    gaps = whole[:, ::2, :, 1:5]
    got = depthwise_conv2d(gaps, weight, None, ONE, ONE)
    want = F.conv2d(gaps, weight, None, 1, 1, groups=2)
    torch.testing.assert_close(got, want)
    for ours, theirs in zip(
        torch.autograd.grad(got.sum(), (whole, weight)),
        torch.autograd.grad(want.sum(), (whole, weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_same_bits_each_time(draw):
    x, weight = draw(3, 2, 4, 4), draw(2, 1, 3, 3)
    y = depthwise_conv2d(x, weight, None, ONE, ONE)
    gradient = torch.ones_like(y)
    first, second = (
        torch.autograd.grad(y, (x, weight), gradient, retain_graph=True) for _ in range(2)
    )
    assert torch.equal(y, depthwise_conv2d(x, weight, None, ONE, ONE))
    assert all(map(torch.equal, first, second))


def test_layout_is_kept(draw):
    weight = draw(4, 1, 3, 3)
    for channels_last in (False, True):
        x = draw(1, 4, 3, 3, channels_last=channels_last)
        y = depthwise_conv2d(x, weight, None, (2, 2), ONE)
        (back,) = torch.autograd.grad(y.sum(), x)
        for found in (y, back):
            assert found.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_an_empty_batch(draw):
    x, weight, bias = draw(0, 2, 5, 5), draw(2, 1, 3, 3), draw(2)
    y = depthwise_conv2d(x, weight, bias)
    assert y.shape == (0, 2, 3, 3)
    assert all((g == 0).all() for g in torch.autograd.grad(y.sum(), (x, weight, bias)))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of its own tensors
@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorch_can_trace_and_compile_it(draw, channels_last):
    x = draw(1, 2, 3, 3, channels_last=channels_last)
    arguments = (x, draw(2, 1, 2, 1), draw(2), [2, 1], [1, 1], [1, 1])
    torch.library.opcheck(depthwise._forward, arguments)


def test_what_does_not_fit_is_said(draw):
    x = draw(1, 4, 5, 5)
    with pytest.raises(FoveateError, match="do not fit 4 channels"):
        depthwise_conv2d(x, draw(3, 1, 3, 3))
    with pytest.raises(FoveateError, match="smaller than its kernel of 7x7"):
        depthwise_conv2d(x, draw(4, 1, 7, 7))
