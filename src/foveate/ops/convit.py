"""Gated positional self-attention: each head weighs what a pixel holds against where it lies.

Source: convit (arXiv 2103.10697, sections 2 and 3). The authors' code is under Apache-2.0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.ops.attention import join_heads, require_heads, split_heads


@implements("convit")
class GatedPositionalSelfAttention(nn.Module):
    """Attention by content and attention by place, mixed by a gate in each head.

    A head's score of a place is linear in its offset and squared distance, so
    the softmax over places is that over rows times that over columns: places
    are mixed by two small matrices instead of one between all pairs.

    Args:
        dim: channels.
        heads: how many share them; at first the squares among them look at the
            places of a convolution's kernel.
        bias: of queries, keys and values.
        strength: how sharply they look there (α).

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if heads do not divide dim.
    """

    def __init__(self, dim: int, heads: int = 4, bias: bool = False, strength: float = 1.0) -> None:
        super().__init__()
        require_heads(dim, heads)
        self.heads, self.strength = heads, strength
        self.qk = nn.Conv2d(dim, 2 * dim, 1, bias=bias)
        self.v = nn.Conv2d(dim, dim, 1, bias=bias)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.pos_proj = nn.Linear(3, heads)
        self.gating_param = nn.Parameter(torch.ones(heads))
        self.look_like_a_convolution()

    @torch.no_grad()
    def look_like_a_convolution(self) -> None:
        """Set values to the input and each head's place to one of a square kernel (section 3)."""
        nn.init.dirac_(self.v.weight)
        nn.init.zeros_(self.pos_proj.bias)
        nn.init.trunc_normal_(self.pos_proj.weight, std=0.02)
        side = int(self.heads**0.5)
        centre = (side - 1) / 2 if side % 2 == 0 else side // 2
        for head in range(side * side):
            right, down = divmod(head, side)
            place = torch.tensor([2 * (right - centre), 2 * (down - centre), -1.0])
            self.pos_proj.weight[head] = place
        self.pos_proj.weight.mul_(self.strength)

    def forward(self, x: Tensor) -> Tensor:
        q, k = (split_heads(t, self.heads) for t in self.qk(x).chunk(2, dim=1))
        v = self.v(x).unflatten(1, (self.heads, -1))  # (B, heads, C / heads, H, W)
        rows, columns = self._places(x)
        near = rows[:, None] @ v @ columns.mT[:, None]
        alike = F.scaled_dot_product_attention(q, k, v.flatten(3).mT)
        gate = self.gates().view(-1, 1, 1, 1)
        alike = join_heads(alike, x.shape[2:])
        return self.proj(torch.lerp(alike.unflatten(1, v.shape[1:3]), near, gate).flatten(1, 2))

    def gates(self) -> Tensor:
        """How much each head goes by place rather than by content, in [0, 1]: (heads,)."""
        return self.gating_param.sigmoid()

    def attention(self, x: Tensor) -> Tensor:
        """What every place looks at, as a matrix: (B, heads, H W, H W), of rows that sum to 1."""
        q, k = (split_heads(t, self.heads) for t in self.qk(x).chunk(2, dim=1))
        alike = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        rows, columns = self._places(x)
        near = torch.einsum("hyi,hxj->hyxij", rows, columns).flatten(3).flatten(1, 2)
        gate = self.gates().view(-1, 1, 1)
        return (1 - gate) * alike + gate * near

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax over rows (heads, H, H) and over columns (heads, W, W)."""
        right, down, apart = self.pos_proj.weight.T[:, :, None, None]
        bias = self.pos_proj.bias[:, None, None]
        found = []
        for slope, side in ((down, x.shape[2]), (right, x.shape[3])):
            places = torch.arange(side, device=x.device, dtype=slope.dtype)
            offset = places - places[:, None]
            scores = slope * offset + apart * offset.square() + bias
            found.append(scores.softmax(-1))
        return found[0], found[1]
