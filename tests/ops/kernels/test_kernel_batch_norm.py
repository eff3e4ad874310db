import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.ops.kernels import accelerate
from foveate.ops.kernels.batch_norm import batch_norm, plain_batch_norm


def last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("channels", "side"), [(3, 5), (24, 14), (96, 8), (70, 9), (129, 3), (40, 37)]
)
def test_it_is_its_twin(library, agrees, channels, side):
    agrees(
        lambda *given: batch_norm(*given)[0],
        lambda *given: plain_batch_norm(*given)[0],
        (last(2, channels, side, side + 1) + 3, torch.randn(channels), torch.randn(channels)),
    )


def test_the_twin_is_pytorchs():
    x, weight, bias = torch.randn(3, 5, 4, 6).double(), torch.randn(5), torch.randn(5)
    weight, bias = weight.double(), bias.double()
    y, mean, variance = plain_batch_norm(x, weight, bias)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, weight, bias, training=True))
    torch.testing.assert_close(mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(variance, x.var((0, 2, 3), correction=0))


def test_weight_and_bias_need_not_be(library, agrees):
    agrees(lambda x: batch_norm(x)[0], lambda x: plain_batch_norm(x)[0], (last(2, 12, 7, 7),))


def test_a_large_mean_drowns_no_more_than_in_pytorch(library):
    x = last(4, 24, 8, 8) * 1e-2 + 100
    exact = F.batch_norm(x.double(), None, None, training=True)
    ours = (batch_norm(x)[0].double() - exact).abs().max()
    theirs = (F.batch_norm(x, None, None, training=True).double() - exact).abs().max()
    assert ours <= 2 * theirs


def test_gradients_of_gradients(library):
    x, weight, bias = last(2, 4, 3, 3).requires_grad_(), torch.randn(4), torch.randn(4)

    def penalty(norm):
        (gx,) = torch.autograd.grad(norm(x, weight, bias)[0].pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gx.square().sum(), x)[0]

    ours, theirs = penalty(batch_norm), penalty(plain_batch_norm)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    "how",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=str,
)
def test_a_module_trains_as_in_pytorch(library, how):
    """Outputs, gradients and running statistics of a few steps, and outputs in service."""
    plain = nn.BatchNorm2d(10, **how)
    fast = copy.deepcopy(plain)
    assert accelerate(fast) == [""]
    for _ in range(3):
        x = (last(4, 10, 6, 6) * 2 + 1).requires_grad_()
        g = torch.randn_like(x)
        ours, theirs = fast(x), plain(x)
        assert ours.grad_fn.name() == "_BatchNormBackward"
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        for norm, y in ((fast, ours), (plain, theirs)):
            norm.zero_grad()
            y.backward(g, retain_graph=True)
        for a, b in zip(fast.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    for a, b in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(fast.eval()(x), plain.eval()(x), rtol=1e-5, atol=1e-5)


def test_what_pytorch_refuses_is_refused(library):
    fast = nn.BatchNorm2d(10)
    accelerate(fast)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fast(last(1, 10, 1, 1))
    with pytest.raises(RuntimeError, match="10"):
        fast(last(2, 11, 4, 4))
