"""Linear attention that looks sharply: rectified, bounded, and concentrated by convolutions.

Source: l2vit (arXiv 2501.16182, section 3). The authors' code is under MIT.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.ops.windows import fold, pad_to_windows, unfold

LEAST_SUM = 100.0


@implements("l2vit")
class LinearAttention(nn.Module):
    """Attention between all places at a cost that is linear in their number.

    Weights are products of rectified queries and keys, divided by their sum or by
    100 if that is more, so that keys and values are summed up once for all.

    Args:
        dim: channels.
        heads: how many share them.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.full((heads, 1, 1), (dim // heads) ** -0.5))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(2).unflatten(1, (3, self.heads, -1)).unbind(1)
        q, k = F.relu(q), F.relu(k)  # (B, heads, channels, N)
        total = (k.sum(-1, keepdim=True).mT @ q).clamp(min=LEAST_SUM)
        summed = (v @ k.mT) * self.temperature
        return self.proj(((summed @ q) / total).flatten(1, 2).unflatten(2, x.shape[2:]))


@implements("l2vit")
class WindowAttention(nn.Module):
    """Attention among the places of each window; maps are padded with zeros.

    Args:
        dim: channels.
        heads: how many share them.
        window: side of a window.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, heads: int = 8, window: int = 7) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        high, wide = x.shape[2:]
        x = pad_to_windows(x, self.window)
        size = x.shape[2], x.shape[3]
        q, k, v = (fold(t, self.window, self.heads) for t in self.qkv(x).chunk(3, dim=1))
        mixed = unfold(F.scaled_dot_product_attention(q, k, v), size, self.window)
        return self.proj(mixed[..., :high, :wide])


@implements("l2vit")
class LocalConcentration(nn.Module):
    """Two 7x7 depthwise convolutions, GELU and batch norm between: they bring attention that has
    spread over the map back to its surroundings.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, kernel: int = 7) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.norm(F.gelu(self.conv1(x))))
