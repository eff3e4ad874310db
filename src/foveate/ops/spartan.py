"""Multi-order spatial mixing with gates, and channels mixed as waves.

Source: spartan (arXiv 2507.10999, section III). The authors' code is under Apache-2.0.
"""

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.se import SqueezeExcite

EPS = 1e-6


@implements("spartan")
class MultiOrderMixer(nn.Module):
    """A near and a far look, each gated by squeeze and excitation, side by side.

    The near one is a 3x3 convolution, the far one two of dilation 2 in a row. Both
    see half as many channels, whose differences from the map's mean may be
    strengthened.

    Args:
        dim: channels, a multiple of 8.
        dense: convolutions across channels instead of depthwise ones.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if dim is no multiple of 8.
    """

    def __init__(self, dim: int, dense: bool = False) -> None:
        super().__init__()
        if dim % 8:
            raise FoveateError(
                f"{dim} channels cannot be halved and squeezed: give a multiple of 8"
            )
        half = dim // 2
        groups = 1 if dense else half
        self.gamma = nn.Parameter(torch.full((half, 1, 1), 1e-5))
        self.proj_in = nn.Conv2d(dim, half, 1)
        self.near = ConvNorm(half, half, 3, groups=groups, eps=EPS)
        self.far = nn.Sequential(
            nn.Conv2d(half, half, 3, padding=2, dilation=2, groups=groups, bias=False),
            ConvNorm(half, half, 3, groups=groups, eps=EPS, dilation=2),
        )
        self.act = nn.GELU()
        self.near_gate, self.far_gate = (SqueezeExcite(half, reduction=4) for _ in range(2))
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj_in(x)
        x = torch.addcmul(x, self.gamma, x - x.mean((2, 3), keepdim=True))
        near, far = self.near_gate(self.act(self.near(x))), self.far_gate(self.act(self.far(x)))
        return self.proj_out(torch.cat((near, far), dim=1))


@implements("spartan")
class WaveMixer(nn.Module):
    """A channel mixer in which each pixel's strongest channel speaks to all, then pairs of
    channels are turned and scaled as complex numbers, seen in 3x3 and gated.

    Args:
        dim: channels of the input.
        ratio: how many times more there are inside.
        grouped: the 3x3 sees `ratio` channels together instead of one.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if there is no even number of channels inside.
    """

    def __init__(self, dim: int, ratio: int = 4, grouped: bool = False) -> None:
        super().__init__()
        hidden = ratio * dim
        if hidden % 2:
            raise FoveateError(f"{hidden} channels form no pairs: give an even width or ratio")
        self.theta = nn.Conv2d(dim, hidden, 1)
        self.proj = nn.Conv2d(dim, hidden, 1)
        self.waves = nn.Parameter(torch.randn(hidden // 2, 2))
        self.act = nn.GELU()
        self.conv = ConvNorm(hidden, hidden, 3, groups=dim if grouped else hidden, eps=EPS)
        self.gate = SqueezeExcite(hidden, hidden=dim // 4)
        self.proj_out = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        strongest = x.argmax(dim=1, keepdim=True)
        theta, weight = self.act(self.theta(x)), self.proj(x)
        told = weight.gather(1, strongest) * theta.gather(1, strongest)
        x = self._turned(torch.addcmul(told, weight, theta))
        return self.proj_out(self.gate(self.act(self.conv(x))))

    def _turned(self, x: Tensor) -> Tensor:
        """Pairs of channels times complex numbers."""
        real, imaginary = x.unflatten(1, (-1, 2)).unbind(2)
        a, b = self.waves.to(x.dtype)[:, :, None, None].unbind(1)
        turned = (a * real - b * imaginary, a * imaginary + b * real)
        return torch.stack(turned, dim=2).flatten(1, 2)
