"""Layer norm over channels in Triton gives what PyTorch's gives on permuted maps."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from foveate import FoveateError
from foveate.ops.kernels.triton import layer_norm, layer_norm_channels


def plain(x, weight, bias, eps=1e-6):
    return F.layer_norm(x.movedim(1, -1), weight.shape, weight, bias, eps).movedim(-1, 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_result_and_gradients_are_pytorchs(agree, draw, dtype, channels_last):
    x = draw(2, 13, 5, 7, channels_last=channels_last, dtype=dtype)
    agree(layer_norm_channels, plain, [x, draw(13, dtype=dtype), draw(13, dtype=dtype)])


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.tuples(
        *[st.integers(least, most) for least, most in ((1, 3), (3, 40), (1, 9), (1, 9))]
    ),
    channels_last=st.booleans(),
    many=st.booleans(),
)
def test_any_shape(agree, draw, shape, channels_last, many):
    programs = layer_norm.PROGRAMS
    layer_norm.PROGRAMS = programs if many else 1
    try:
        x = draw(*shape, channels_last=channels_last)
        with torch.no_grad():
            # no pixel's channels are close to equal, where a norm's gradient is boundless
            x += 4 * torch.arange(shape[1], device=x.device).view(-1, 1, 1)
        agree(layer_norm_channels, plain, [x, draw(shape[1]), draw(shape[1])])
    finally:
        layer_norm.PROGRAMS = programs


def test_a_large_mean_does_not_drown_the_variance(draw):
    x = draw(1, 16, 3, 3).detach() + 1000
    one, zero = torch.ones(16, device=x.device), torch.zeros(16, device=x.device)
    want = plain(x.double(), one.double(), zero.double())
    torch.testing.assert_close(layer_norm_channels(x, one, zero).double(), want, rtol=0, atol=1e-3)


def test_maps_with_gaps_and_expanded_gradients(draw):
    whole, weight, bias = draw(2, 6, 5, 8), draw(3), draw(3)
    gaps = whole[:, ::2, :, 1:7]
    got, want = layer_norm_channels(gaps, weight, bias), plain(gaps, weight, bias)
    torch.testing.assert_close(got, want)
    ours, theirs = (torch.autograd.grad(y.sum(), (weight, bias)) for y in (got, want))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_same_bits_each_time(draw):
    x, weight, bias = draw(3, 9, 5, 5), draw(9), draw(9)
    y = layer_norm_channels(x, weight, bias)
    first, second = (
        torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y), retain_graph=True)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of its own tensors
@pytest.mark.parametrize("channels_last", [False, True])
def test_pytorch_can_trace_and_compile_it(draw, channels_last):
    x = draw(1, 4, 3, 5, channels_last=channels_last)
    torch.library.opcheck(layer_norm._forward, (x, draw(4), draw(4), 1e-5))


def test_what_does_not_fit_is_said(draw):
    with pytest.raises(FoveateError, match=r"give \(4,\) for both"):
        layer_norm_channels(draw(1, 4, 2, 2), draw(4), draw(3))
    with pytest.raises(FoveateError, match="8193 channels are more"):
        layer_norm_channels(draw(1, 8193, 1, 1), draw(8193), draw(8193))
