"""Convolutions factorised before training: filters along channels, rows and columns alone.

Source: apriori_lowrank_conv (A priori compression of convolutional neural networks for
wave simulators). The kernel is a sum of R products of one-way filters (CP).
"""

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError


@implements("apriori_lowrank_conv")
class OneWayConv2d(nn.Sequential):
    """A convolution of rank R: 1x1 into R channels, a column and a row filter each, 1x1 out.

    Args:
        dim, dim_out: input and output channels.
        kernel_size: odd side of the kernel that is factorised.
        rank: R; by default as many as the fewer of the channels.
        stride: of the column and row filters, each along its own way.
        bias: of the output.

    Shapes: (B, dim, H, W) to (B, dim_out, H / stride, W / stride).
    Raises: FoveateError if the kernel is even or the rank not positive.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_size: int = 3,
        rank: int | None = None,
        stride: int = 1,
        bias: bool = True,
    ) -> None:
        rank = min(dim, dim_out) if rank is None else rank
        if kernel_size % 2 == 0:
            raise FoveateError(f"a kernel of {kernel_size} pixels has no centre: give an odd one")
        if rank < 1:
            raise FoveateError(f"the rank is {rank}: give 1 or more")
        pad = kernel_size // 2
        super().__init__()
        self.inward = nn.Conv2d(dim, rank, 1, bias=False)
        self.column = nn.Conv2d(
            rank, rank, (kernel_size, 1), (stride, 1), (pad, 0), groups=rank, bias=False
        )
        self.row = nn.Conv2d(
            rank, rank, (1, kernel_size), (1, stride), (0, pad), groups=rank, bias=False
        )
        self.outward = nn.Conv2d(rank, dim_out, 1, bias=bias)
        for conv in (self.inward, self.column, self.row, self.outward):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")

    def kernel(self) -> Tensor:
        """The kernel that it factorises: (dim_out, dim, kernel_size, kernel_size)."""
        return torch.einsum(
            "or,ri,ry,rx->oiyx",
            self.outward.weight[..., 0, 0],
            self.inward.weight[..., 0, 0],
            self.column.weight[:, 0, :, 0],
            self.row.weight[:, 0, 0],
        )
