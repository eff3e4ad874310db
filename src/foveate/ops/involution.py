"""Involution: kernels that differ from place to place and are shared among channels.

Source: involution (arXiv 2103.06255, section 3). The authors' code is under MIT.
"""

from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.neighbourhood import mix_neighbours


@implements("involution")
class Involution(nn.Module):
    """Make a kernel at each pixel from that pixel alone, and mix its neighbours with it.

    Args:
        dim: channels of the input.
        kernel_size: odd side of the neighbourhood.
        stride: between the places; kernels then come from average-pooled maps.
        group_dim: channels that share a kernel.
        reduction: by how much narrower the layer is that kernels are made from.

    Shapes: (B, dim, H, W) to (B, dim, H / stride, W / stride).
    Raises: FoveateError if dim is not a multiple of group_dim.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        stride: int = 1,
        group_dim: int = 16,
        reduction: int = 4,
    ) -> None:
        super().__init__()
        if dim % group_dim:
            raise FoveateError(
                f"{dim} channels cannot be divided into groups of {group_dim}: give a divisor"
            )
        self.kernel_size, self.stride = kernel_size, stride
        self.groups = dim // group_dim
        hidden = dim // reduction
        self.pool = nn.AvgPool2d(stride, stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.reduce = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(inplace=True)
        )
        self.span = nn.Conv2d(hidden, kernel_size**2 * self.groups, 1)

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.span(self.reduce(self.pool(x)))
        weights = kernels.unflatten(1, (self.groups, self.kernel_size**2))
        return mix_neighbours(x, weights, self.kernel_size, self.stride)
