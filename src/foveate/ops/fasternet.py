"""Partial convolution: a dense kernel on a share of the channels; the rest passes.

Source: fasternet (arXiv 2303.03667, section 3.2).
"""

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError


@implements("fasternet")
class PartialConv(nn.Module):
    """Convolve the first `dim // share` channels and leave the others as they are.

    Args:
        dim: channels of the input.
        share: one of so many channels is convolved.
        kernel: odd side of the kernel.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if no channel would be convolved or the kernel is even.
    """

    def __init__(self, dim: int, share: int = 4, kernel: int = 3) -> None:
        super().__init__()
        if not 1 <= share <= dim:
            raise FoveateError(f"share is {share} of {dim} channels: give 1 to {dim}")
        if kernel % 2 == 0:
            raise FoveateError(f"a kernel of {kernel} pixels has no centre: give an odd one")
        part = dim // share
        self.parts = (part, dim - part)
        self.conv = nn.Conv2d(part, part, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        mixed, same = x.split(self.parts, dim=1)
        return torch.cat((self.conv(mixed), same), dim=1)
