"""Shifts in Triton move each channel as padding and slicing do."""

import pytest
import torch
from torch.nn import functional as F

from foveate import FoveateError
from foveate.ops.kernels.triton import shift, shifts


def plain(x, offsets):
    far = int(offsets.abs().max()) + 1
    padded = F.pad(x, (far, far, far, far))
    high, wide = x.shape[2:]
    return torch.stack(
        [
            padded[:, c, far + down : far + down + high, far + across : far + across + wide]
            for c, (down, across) in enumerate(offsets.tolist())
        ],
        dim=1,
    )


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_result_and_gradient_are_those_of_slices(draw, dtype, channels_last):
    x = draw(2, 9, 6, 7, channels_last=channels_last, dtype=dtype)
    offsets = torch.randint(-2, 3, (9, 2), generator=torch.Generator().manual_seed(0)).to(x.device)
    got, want = shift(x, offsets), plain(x, offsets)
    assert torch.equal(got, want)
    gradient = draw(*got.shape, dtype=dtype).detach()
    ours, theirs = (torch.autograd.grad(y, x, gradient)[0] for y in (got, want))
    assert torch.equal(ours, theirs)
    assert got.is_contiguous(memory_format=torch.channels_last) == channels_last


def test_beyond_the_map_there_is_nothing(draw):
    x = draw(1, 2, 3, 3)
    assert not shift(x, torch.tensor([[3, 0], [0, -9]], device=x.device)).any()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of its own tensors
def test_pytorch_can_trace_and_compile_it(draw):
    x = draw(1, 2, 3, 4)
    offsets = torch.tensor([[1, 0], [0, -1]], device=x.device)
    torch.library.opcheck(shifts._shift, (x, offsets, 1))


def test_what_does_not_fit_is_said(draw):
    x = draw(1, 4, 2, 2)
    for offsets in (torch.zeros(3, 2, dtype=torch.int32), torch.zeros(4, 2)):
        with pytest.raises(FoveateError, match=r"give \(4, 2\) whole numbers"):
            shift(x, offsets)
