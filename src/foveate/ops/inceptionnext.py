"""Inception depthwise convolution: identity, a square and two bands instead of a large kernel.

Source: inceptionnext (arXiv 2303.16900, section 3.2).
"""

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError


@implements("inceptionnext")
class InceptionDepthwise(nn.Module):
    """Mix tokens with a square, a wide and a tall depthwise kernel on a share of channels each.

    Args:
        dim: channels of the input.
        square_kernel: odd side of the square kernel.
        band_kernel: odd length of the bands, which are one pixel thick.
        branch_ratio: share of the channels that each of the three takes; the
            rest passes unchanged.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if a kernel is even or the branches have no channels.
    """

    def __init__(
        self,
        dim: int,
        square_kernel: int = 3,
        band_kernel: int = 11,
        branch_ratio: float = 1 / 8,
    ) -> None:
        super().__init__()
        part = int(dim * branch_ratio)
        if square_kernel % 2 == 0 or band_kernel % 2 == 0:
            raise FoveateError(
                f"kernels of {square_kernel} and {band_kernel} pixels have no centre: give odd ones"
            )
        if not 0 < 3 * part <= dim:
            raise FoveateError(
                f"branch_ratio {branch_ratio} gives branches of {part} of {dim} channels: "
                "give a ratio so that three branches of at least one channel fit"
            )
        self.parts = (dim - 3 * part, part, part, part)
        pad = band_kernel // 2
        self.dwconv_hw = nn.Conv2d(
            part, part, square_kernel, padding=square_kernel // 2, groups=part
        )
        self.dwconv_w = nn.Conv2d(part, part, (1, band_kernel), padding=(0, pad), groups=part)
        self.dwconv_h = nn.Conv2d(part, part, (band_kernel, 1), padding=(pad, 0), groups=part)

    def forward(self, x: Tensor) -> Tensor:
        same, square, wide, tall = x.split(self.parts, dim=1)
        return torch.cat(
            (same, self.dwconv_hw(square), self.dwconv_w(wide), self.dwconv_h(tall)), dim=1
        )
