"""Small depthwise convolutions that families share."""

import torch
from torch import Tensor, nn


class ResidualDepthwise(nn.Conv2d):
    """A 3x3 depthwise convolution and its input, which merging puts in the kernel's middle.

    Args:
        dim: channels.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.residual = True

    def forward(self, input: Tensor) -> Tensor:
        out = super().forward(input)
        return input + out if self.residual else out

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Add the input in the middle of the kernel."""
        if self.residual:
            self.weight[..., 1, 1] += 1
            self.residual = False
