"""LeViT's attention: thin keys, biases of offsets, batch norms, and a form that shrinks the map.

Source: levit (arXiv 2104.01136, section 4). The authors' code is under Apache-2.0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm


@implements("levit")
class LevitAttention(nn.Module):
    """Attention with a learnt bias for each distance between places, down and across.

    Args:
        dim, dim_out: input and output channels; as many by default.
        key_dim, heads: channels of a head's keys, and how many heads.
        ratio: how many times more channels its values have.
        side: of the maps that the biases are made for; for others they are scaled.
        stride: of the places that look; above 1 the map shrinks.

    Shapes: (B, dim, H, W) to (B, dim_out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self,
        dim: int,
        key_dim: int = 16,
        heads: int = 4,
        ratio: int = 2,
        side: int = 14,
        stride: int = 1,
        dim_out: int | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.side, self.stride = heads, side, stride
        self.parts = [key_dim, ratio * key_dim]
        if stride > 1:
            self.kv = ConvNorm(dim, heads * sum(self.parts))
            self.q = ConvNorm(dim, heads * key_dim)
        else:
            self.parts = [key_dim, *self.parts]
            self.qkv = ConvNorm(dim, heads * sum(self.parts))
        gain = 1.0 if stride > 1 else 0.0
        values = heads * ratio * key_dim
        self.proj = nn.Sequential(nn.Hardswish(), ConvNorm(values, dim_out or dim, gain=gain))
        self.attention_biases = nn.Parameter(torch.zeros(heads, side * side))

    def forward(self, x: Tensor) -> Tensor:
        places = x[:, :, :: self.stride, :: self.stride]
        seen = self.kv(x) if self.stride > 1 else self.qkv(x)
        parts = list(seen.flatten(2).unflatten(1, (self.heads, -1)).split(self.parts, dim=2))
        if self.stride > 1:
            parts.insert(0, self.q(places).flatten(2).unflatten(1, (self.heads, -1)))
        q, k, v = parts
        bias = offset_bias(self.attention_biases, self.side, x.shape[2:], self.stride)
        mixed = attend_with_bias(q, k, v, bias)
        return self.proj(mixed.flatten(1, 2).unflatten(2, places.shape[2:]))


def offset_bias(table: Tensor, side: int, size: torch.Size, stride: int = 1) -> Tensor:
    """Biases of all pairs of places, by how far they are apart down and across.

    Args:
        table: (heads, side * side), of maps of `side` pixels; scaled for others.
        size: H and W of the map.
        stride: of the places that look.

    Returns: (heads, N, H * W), of the N places that look.
    """
    table = table.unflatten(1, (side, side))
    if tuple(size) != (side, side):
        table = F.interpolate(table[None], tuple(size), mode="bilinear")[0]
    down, right = (_apart(n, stride, table.device) for n in size)
    index = down[:, None, :, None] * size[1] + right[:, None]  # (rows, columns, H, W)
    found = table.flatten(1).index_select(1, index.flatten())  # many times as fast as table[index]
    return found.view(len(table), -1, size[0] * size[1])


def attend_with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax attention with a bias for each pair.

    Fused attention has no fast path for keys thinner than values, nor for biases.

    Shapes: (B, heads, key_dim, N), (B, heads, key_dim, M), (B, heads, value_dim, M) and
    (heads, N, M) to (B, heads, value_dim, N).
    """
    scores = (q * q.shape[2] ** -0.5).mT @ k
    return v @ (scores + bias.to(q.dtype)).softmax(-1).mT


def _apart(side: int, stride: int, device: torch.device) -> Tensor:
    """Distances of every `stride`-th place to every one, along a side."""
    places = torch.arange(side, device=device)
    return (places[::stride, None] - places).abs()
