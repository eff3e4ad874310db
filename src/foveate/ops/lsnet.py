"""See large, focus small: a large static kernel decides on small dynamic ones.

Source: lsnet (arXiv 2503.23135, section 3.2). The authors' code states no licence; it
was read for the order of channels and norms.
"""

from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.neighbourhood import mix_neighbours


@implements("lsnet")
class LsConv(nn.Module):
    """Perceive with a large depthwise kernel, make a small kernel for each place and group of
    channels, aggregate neighbours with it, norm, add the input.

    Args:
        dim: channels of the input.
        large, small: odd sides of the kernel that perceives and of those that aggregate.
        group_dim: channels that share a small kernel.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if dim is not a multiple of group_dim, or odd.
    """

    def __init__(self, dim: int, large: int = 7, small: int = 3, group_dim: int = 8) -> None:
        super().__init__()
        if dim % group_dim or dim % 2:
            raise FoveateError(
                f"{dim} channels cannot be halved and divided into groups of {group_dim}: give an "
                "even multiple"
            )
        half, self.groups, self.small = dim // 2, dim // group_dim, small
        self.perceive = nn.Sequential(
            ConvNorm(dim, half),
            nn.ReLU(inplace=True),
            ConvNorm(half, half, large, groups=half),
            ConvNorm(half, half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, small**2 * self.groups, 1),
            nn.GroupNorm(self.groups, small**2 * self.groups),
        )
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.perceive(x).unflatten(1, (self.groups, self.small**2))
        return x + self.norm(mix_neighbours(x, weights, self.small, interleaved=True))
