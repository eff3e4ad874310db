"""Channel attention from a 1-D convolution across channels, with no reduction.

Source: eca (arXiv 1910.03151, section 3.2).
"""

import math

from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError


@implements("eca")
class EfficientChannelAttention(nn.Module):
    """Scale each channel by a gate computed from its neighbours among the channels.

    Args:
        dim: channels of the input.
        kernel_size: odd width of the 1-D convolution; by default `adaptive_kernel(dim)`.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if kernel_size is even.
    """

    def __init__(self, dim: int, kernel_size: int | None = None) -> None:
        super().__init__()
        kernel_size = kernel_size or adaptive_kernel(dim)
        if kernel_size % 2 == 0:
            raise FoveateError(f"a kernel of {kernel_size} channels has no centre: give an odd one")
        self.conv = nn.Conv1d(1, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gates = self.conv(x.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
        return x * gates[:, :, None, None]


def adaptive_kernel(dim: int) -> int:
    """Equation 12: the odd width nearest to log2(dim) / 2 + 1 / 2; of two as near, the smaller,
    which gives ResNet-50 the 80 parameters that the paper counts."""
    return 2 * math.ceil((math.log2(dim) / 2 + 1 / 2) / 2 - 1) + 1
