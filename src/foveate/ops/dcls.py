"""Dilated convolution with learnable spacings: few weights that find their places in a big kernel.

Sources: dcls (arXiv 2112.03740, section 2), and for Gaussian interpolation arXiv 2306.00817.
The authors' code is under MIT.
"""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError

SIGMA_LEAST = 0.27
SIGMA_AT_FIRST = 0.23


class _Spaced(nn.Module):
    """Weights at real positions, spread over the grid of a dense kernel.

    Args:
        dim, dim_out: input and output channels.
        kernel_count: weights of each filter.
        dilated_kernel_size: odd side of the dense kernel that they move in.
        stride, groups, bias: as a convolution has them.
        interpolation: a weight is spread `bilinear`ly over the taps around its
            position, or by a `gauss` whose width is learnt, too.

    Attributes:
        positions: (axes, dim_out, dim / groups, kernel_count), in pixels from
            the centre. They may be shared among layers, and train best with
            five times the learning rate and no weight decay.

    Raises: FoveateError if the kernel is even, or the interpolation unknown.
    """

    axes: ClassVar[int]
    sigma: nn.Parameter | None
    dense: Tensor | None

    def __init__(
        self,
        dim: int,
        dim_out: int,
        kernel_count: int,
        dilated_kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        interpolation: Literal["bilinear", "gauss"] = "bilinear",
    ) -> None:
        super().__init__()
        if dilated_kernel_size % 2 == 0:
            raise FoveateError(
                f"a kernel of {dilated_kernel_size} pixels has no centre: give an odd one"
            )
        if interpolation not in ("bilinear", "gauss"):
            raise FoveateError(f"interpolation is {interpolation!r}: choose bilinear or gauss")
        self.stride, self.groups = stride, groups
        self.limit = dilated_kernel_size // 2
        shape = dim_out, dim // groups, kernel_count
        self.weight = nn.Parameter(torch.empty(shape))
        self.positions = nn.Parameter(torch.empty(self.axes, *shape))
        wide = nn.Parameter(torch.full((self.axes, *shape), SIGMA_AT_FIRST))
        self.register_parameter("sigma", wide if interpolation == "gauss" else None)
        self.bias = nn.Parameter(torch.zeros(dim_out)) if bias else None
        self.register_buffer("dense", None)
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        nn.init.normal_(self.positions, std=0.5)

    def kernel(self) -> Tensor:
        """The dense kernel: (dim_out, dim / groups, *sides)."""
        if self.dense is not None:
            return self.dense
        grid = torch.arange(
            -self.limit, self.limit + 1, device=self.weight.device, dtype=self.weight.dtype
        )
        places = self.positions.clamp(-self.limit, self.limit)
        apart = grid - places[..., None]  # (axes, dim_out, dim / groups, kernel_count, side)
        if self.sigma is None:
            shares = (1 - apart.abs()).relu()
        else:
            shares = (-0.5 * (apart / (self.sigma.abs() + SIGMA_LEAST)[..., None]).square()).exp()
            shares = shares / (shares.sum(-1, keepdim=True) + 1e-7)
        sides = "abc"[: self.axes]
        terms = ",".join(f"oin{side}" for side in sides)
        return torch.einsum(f"oin,{terms}->oi{sides}", self.weight, *shares)

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Keep the dense kernel, and drop what draws it."""
        if self.dense is None:
            self.dense = self.kernel()
            for name in ("weight", "positions", "sigma"):
                self.register_parameter(name, None)

    def forward(self, x: Tensor) -> Tensor:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[self.axes - 1]
        return convolve(x, self.kernel(), self.bias, self.stride, self.limit, groups=self.groups)


@implements("dcls")
class Dcls1d(_Spaced):
    """Learnable spacings in a line. Shapes: (B, dim, L) to (B, dim_out, L / stride)."""

    axes = 1


@implements("dcls")
class Dcls2d(_Spaced):
    """Learnable spacings in a plane. Shapes: (B, dim, H, W) to (B, dim_out, H / stride, ...)."""

    axes = 2


@implements("dcls")
class Dcls3d(_Spaced):
    """Learnable spacings in space. Shapes: (B, dim, D, H, W) to (B, dim_out, D / stride, ...)."""

    axes = 3


@implements("dcls")
class DepthwiseDcls(Dcls2d):
    """A depthwise `Dcls2d`, which stands for ConvNeXt's 7x7.

    Args:
        dim: channels of the input.
        kernel_count, dilated_kernel_size: weights of each filter, and the side
            of the kernel that they move in; by default as published.
        interpolation: `bilinear` or `gauss`.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self,
        dim: int,
        kernel_count: int = 34,
        dilated_kernel_size: int = 17,
        interpolation: Literal["bilinear", "gauss"] = "bilinear",
    ) -> None:
        super().__init__(
            dim,
            dim,
            kernel_count,
            dilated_kernel_size,
            groups=dim,
            interpolation=interpolation,
        )
