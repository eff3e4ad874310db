"""Attention between all places of a map: what papers compare with and build upon."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError


class SelfAttention(nn.Module):
    """Softmax attention of every place to every place (arXiv 1706.03762, section 3.2).

    Args:
        dim: channels.
        heads: how many share them.
        bias: of queries, keys and values.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int = 8, bias: bool = True) -> None:
        super().__init__()
        require_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=bias)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=1)
        return self.proj(attend(q, k, v, self.heads))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention between two maps, which may differ in size.

    Shapes: queries (B, C, H, W), keys and values (B, C, h, w), to (B, C, H, W).
    """
    size = q.shape[2:]
    q, k, v = (split_heads(t, heads) for t in (q, k, v))
    return join_heads(F.scaled_dot_product_attention(q, k, v), size)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, C, H, W) to (B, heads, H W, C / heads)."""
    return x.flatten(2).unflatten(1, (heads, -1)).mT


def join_heads(x: Tensor, size: torch.Size) -> Tensor:
    """(B, heads, H W, C / heads) to (B, C, H, W)."""
    return x.mT.flatten(1, 2).unflatten(2, size)


def require_heads(dim: int, heads: int) -> None:
    """Raises: FoveateError if the channels cannot be shared evenly."""
    if dim % heads:
        raise FoveateError(f"{dim} channels cannot be divided among {heads} heads: give a divisor")
