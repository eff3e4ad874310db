import pytest
import torch

from foveate.ops.kernels import mlp
from foveate.ops.kernels.mlp import plain_mlp
from foveate.ops.kernels.moments import channel_moments

WIDTHS = [(24, 96, 24), (24, 73, 24), (40, 160, 7), (160, 300, 96), (9, 3, 1)]


@pytest.mark.parametrize(("channels", "hidden", "outputs"), WIDTHS)
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("eps", [None, 1e-6])
def test_it_is_its_twin(library, maps, agrees, channels, hidden, outputs, kept, eps):
    keep = torch.tensor([0.0, 1.7]) if kept else None

    def run(function):
        def call(x, w1, b1, w2, b2, residual):
            k = None if keep is None else keep.to(x.dtype)
            return function(x, w1, b1, w2, b2, residual=residual, keep=k, eps=eps)

        return call

    agrees(
        run(mlp),
        run(plain_mlp),
        (
            maps(2, channels, 9, 13),
            torch.randn(hidden, channels) / channels**0.5,
            torch.randn(hidden),
            torch.randn(outputs, hidden) / hidden**0.5,
            torch.randn(outputs),
            maps(2, outputs, 9, 13),
        ),
        tolerance=1e-5,
    )


def test_gradients_of_gradients(library):
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    weights = torch.randn(6, 4), torch.randn(6), torch.randn(4, 6), torch.randn(4)
    found = []
    for function in (mlp, plain_mlp):
        y = function(x, *weights, residual=x)
        (gx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(gx.square().sum(), x)[0])
    scale = found[1].abs().max().item()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4 * scale)


@pytest.mark.parametrize("channels", [3, 16, 40])
def test_moments_are_var_mean(library, channels):
    x = (torch.randn(3, channels, 17, 19) * 2 + 50).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    same, mean, variance = channel_moments(x)
    assert same.data_ptr() == x.data_ptr()
    exact = x.detach().double().requires_grad_()
    v, m = torch.var_mean(exact, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), m, rtol=1e-6, atol=0)
    torch.testing.assert_close(variance.double(), v, rtol=1e-5, atol=0)
    a, b, g = torch.randn(channels), torch.randn(channels), torch.randn_like(x)
    (ours,) = torch.autograd.grad((mean * a + variance * b).sum() + (same * g).sum(), x)
    (theirs,) = torch.autograd.grad((m * a + v * b).sum() + (exact * g).sum(), exact)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-7)
