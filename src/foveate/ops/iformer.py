"""Inception mixer: high frequencies by pooling and convolving, low ones by attention, side by side.

Source: iformer (arXiv 2205.12956, section 3.1). The authors' code is under Apache-2.0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.attention import attend


class HighMixer(nn.Module):
    """Half of the channels through a 1x1 and a depthwise 3x3, half through a maximum and a 1x1.

    Shapes: (B, dim, H, W) to (B, 2 dim, H, W).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.part = half = dim // 2
        self.conv1 = nn.Conv2d(half, 2 * half, 1, bias=False)
        self.proj1 = nn.Conv2d(2 * half, 2 * half, 3, padding=1, groups=2 * half, bias=False)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.proj2 = nn.Conv2d(half, 2 * half, 1)

    def forward(self, x: Tensor) -> Tensor:
        convolved, pooled = x.split(self.part, dim=1)
        convolved = F.gelu(self.proj1(self.conv1(convolved)))
        return torch.cat((convolved, F.gelu(self.proj2(self.pool(pooled)))), dim=1)


class LowMixer(nn.Module):
    """Attention between all places of a pooled map, scaled up again.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, heads: int, pool: int) -> None:
        super().__init__()
        self.heads, self.pool = heads, pool
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        if self.pool > 1:
            x = F.avg_pool2d(x, self.pool, ceil_mode=True, count_include_pad=False)
        q, k, v = self.qkv(x).chunk(3, dim=1)
        mixed = attend(q, k, v, self.heads)
        return mixed if x.shape[2:] == size else F.interpolate(mixed, size)


@implements("iformer")
class InceptionMixer(nn.Module):
    """Some heads' channels attend, the others pool and convolve; a depthwise 3x3 fuses them.

    Args:
        dim: channels of the input.
        heads: into how many parts the channels are divided.
        attending: parts that attend; the others see high frequencies.
        pool: by how much smaller the map is that attention sees.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if the parts do not fit.
    """

    def __init__(self, dim: int, heads: int = 8, attending: int = 4, pool: int = 1) -> None:
        super().__init__()
        if dim % heads or not 0 < attending < heads or (dim // heads) * (heads - attending) % 2:
            raise FoveateError(
                f"{attending} of {heads} parts of {dim} channels cannot attend: give a divisor of "
                "the channels, and fewer parts than there are"
            )
        low = dim // heads * attending
        high = dim - low
        fused = low + 2 * high
        self.parts = high, low
        self.high_mixer = HighMixer(high)
        self.low_mixer = LowMixer(low, attending, pool)
        self.conv_fuse = nn.Conv2d(fused, fused, 3, padding=1, groups=fused, bias=False)
        self.proj = nn.Conv2d(fused, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, low = x.split(self.parts, dim=1)
        both = torch.cat((self.high_mixer(high), self.low_mixer(low)), dim=1)
        return self.proj(both + self.conv_fuse(both))
