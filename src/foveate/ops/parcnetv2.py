"""Kernels twice as long as the map, and gates that split the channels in two.

Source: parcnetv2 (arXiv 2211.07157, section 3). The authors' code is under MIT.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError


@implements("parcnetv2")
class OversizedConv(nn.Module):
    """A vertical and then a horizontal depthwise convolution that reach the whole map.

    Beyond the edge there are zeros, so that every place is seen through another
    part of the kernel: outputs know where they are. Training goes through one
    matrix of places for each channel, which is several times as fast as the long
    kernel; in evaluation mode it is a convolution.

    Args:
        dim: channels.
        side: of the maps that the kernels were made for; they have 2 side - 1 taps.
        zoom: scale the kernels to the length that other maps ask for; otherwise
            they are cropped, or leave far places unseen.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if the side is not positive.
    """

    def __init__(self, dim: int, side: int = 14, zoom: bool = True) -> None:
        super().__init__()
        if side < 1:
            raise FoveateError(f"side is {side}: give that of the maps, 1 or more")
        self.zoom = zoom
        taps = 2 * side - 1
        self.conv_h = nn.Conv2d(dim, dim, (taps, 1), groups=dim, bias=False)
        self.conv_w = nn.Conv2d(dim, dim, (1, taps), groups=dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x.shape[2], x.shape[3]
        down = self._fitted(self.conv_h.weight.flatten(1), high)
        right = self._fitted(self.conv_w.weight.flatten(1), wide)
        if self.training:
            x = torch.einsum("cij,bcjw->bciw", _as_matrix(down, high), x)
            return torch.einsum("cij,bchj->bchi", _as_matrix(right, wide), x)
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(x, down[:, None, :, None], padding=(high - 1, 0), groups=len(down))
        return F.conv2d(x, right[:, None, None], padding=(0, wide - 1), groups=len(right))

    def _fitted(self, kernel: Tensor, side: int) -> Tensor:
        """The kernel (C, taps) for a side of a map: (C, 2 side - 1)."""
        apart = side - 1 - kernel.shape[1] // 2
        if apart == 0:
            return kernel
        if self.zoom:
            return F.interpolate(kernel[None], 2 * side - 1, mode="linear", align_corners=True)[0]
        return F.pad(kernel, (apart, apart))


@implements("parcnetv2")
class SpatialGate(nn.Module):
    """The spatial bifurcate gate unit: channels times what they see of all places.

    Half of the widened channels go through GELU and the sum of an oversized and a
    local depthwise convolution, and weigh the other half.

    Args:
        dim: channels.
        side, zoom: of `OversizedConv`.
        ratio: widened channels over dim.
        local: odd side of the local kernel.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self, dim: int, side: int = 14, ratio: int = 2, local: int = 7, zoom: bool = True
    ) -> None:
        super().__init__()
        half = ratio * dim // 2
        self.pwconv1 = nn.Conv2d(dim, 2 * half, 1)
        self.act = nn.GELU()
        self.dwconv1 = OversizedConv(half, side, zoom)
        self.dwconv2 = nn.Conv2d(half, half, local, padding=local // 2, groups=half, bias=False)
        self.pwconv2 = nn.Conv2d(half, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.pwconv1(x).chunk(2, dim=1)
        gate = self.act(gate)
        return self.pwconv2(value * (self.dwconv1(gate) + self.dwconv2(gate)))


@implements("parcnetv2")
class ChannelGate(nn.Module):
    """The channel bifurcate gate unit: half of the widened channels weighed by the other.

    Args:
        dim: channels.
        hidden: of both halves together.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden // 2, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=1)
        return self.fc2(value * self.act(gate))


def _as_matrix(kernel: Tensor, side: int) -> Tensor:
    """What a kernel of 2 side - 1 taps does to a side with zeros around: (C, side, side)."""
    return kernel.unfold(1, side, 1).flip(1)
