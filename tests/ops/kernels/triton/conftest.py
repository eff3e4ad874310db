"""What the tests of Triton's kernels share: where they run, and how they are compared."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

collect_ignore_glob = [] if find_spec("triton") else ["test_*"]

ROUNDING = {torch.float64: 64, torch.float32: 64, torch.bfloat16: 1, torch.float16: 1}
"""How many steps of a type, at the greatest value, a result may be off: sums round on their way in
float32 and float64, and only at the end in the others."""


@pytest.fixture(scope="session")
def device() -> str:
    """A GPU where there is one, else the CPU and Triton's interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def draw(device):
    """Draws normal tensors that learn, from a seed."""
    generator = torch.Generator().manual_seed(0)

    def drawn(
        *shape: int, dtype: torch.dtype = torch.float32, channels_last: bool = False
    ) -> Tensor:
        x = torch.randn(shape, generator=generator).to(device, dtype)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.requires_grad_()

    return drawn


@pytest.fixture
def agree(draw):
    """Compares a kernel with PyTorch in float64: the result and the gradient of every input."""

    def compare(
        ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: Sequence[Tensor]
    ) -> None:
        got = ours(*inputs)
        copies = [x.detach().double().requires_grad_() for x in inputs]
        want = theirs(*copies)
        close(got, want)
        gradient = draw(*want.shape, dtype=got.dtype).detach()
        ours_back = torch.autograd.grad(got, inputs, gradient)
        theirs_back = torch.autograd.grad(want, copies, gradient.double())
        for ours_one, theirs_one, x in zip(ours_back, theirs_back, inputs, strict=True):
            assert ours_one.dtype == x.dtype
            close(ours_one, theirs_one)

    return compare


def close(got: Tensor, want: Tensor) -> None:
    step = torch.finfo(got.dtype).eps * ROUNDING[got.dtype]
    top = want.abs().max().item()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=step * max(top, 0.1))
