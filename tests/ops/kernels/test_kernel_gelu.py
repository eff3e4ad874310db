import torch
from torch.nn import functional as F

from foveate.ops.kernels import gelu


def test_it_is_gelu_everywhere(library):
    """Within 4e-7 of the function, which is half a rounding of 15, and 6e-7 of its slope."""
    x = torch.linspace(-15, 15, 300_001).requires_grad_()
    exact = x.detach().double().requires_grad_()
    y, expected = gelu(x), F.gelu(exact)
    assert y.grad_fn.name().startswith("_"), "the kernel did not run"
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=4e-7)
    (slope,), (true,) = (torch.autograd.grad(v.sum(), u) for v, u in ((y, x), (expected, exact)))
    torch.testing.assert_close(slope.double(), true, rtol=0, atol=6e-7)


def test_its_tail_is_relatively_right(library):
    x = torch.linspace(-5, -1, 1001)
    exact = F.gelu(x.double())
    torch.testing.assert_close(gelu(x).double(), exact, rtol=5e-6, atol=0)


def test_far_values_and_what_is_no_number(library):
    x = torch.tensor([float("inf"), -1e30, 1e30, float("nan"), 0.0, -0.0])
    y = gelu(x)
    assert y[0] == float("inf")
    assert abs(y[1]) < 1e-6
    assert y[2] == 1e30
    assert y[3].isnan()
    assert (y[4:] == 0).all()


def test_layouts_and_types(library, maps):
    x = maps(2, 5, 7, 9)
    y = gelu(x)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, F.gelu(x))
    half = x.bfloat16()
    exact = F.gelu(half.double()).bfloat16()
    torch.testing.assert_close(gelu(half), exact, rtol=2**-7, atol=1e-30)
    slice_ = x[:, 1:3]
    torch.testing.assert_close(gelu(slice_), F.gelu(slice_))


def test_a_gradient_in_another_layout(library):
    x = torch.randn(2, 5, 4, 4, requires_grad=True)
    gradient = torch.randn(2, 5, 4, 4).contiguous(memory_format=torch.channels_last)
    (ours,) = torch.autograd.grad(gelu(x), x, gradient)
    (theirs,) = torch.autograd.grad(F.gelu(x), x, gradient)
    torch.testing.assert_close(ours, theirs)
