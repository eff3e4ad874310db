"""Aggregated attention: each pixel looks sharply at its neighbours and coarsely at everything.

Source: transnext (arXiv 2311.17132, section 3). The authors' code is under Apache-2.0.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.attention import require_heads, split_heads
from foveate.ops.neighbourhood import compare_neighbours, mix_neighbours

HIDDEN = 512
AT_FIRST = 1 / 0.24
REACH = 8.0


class _Biased(nn.Module):
    """What both kinds of attention share: length-scaled cosine, query embedding, position bias."""

    def __init__(self, dim: int, heads: int, pretrain: tuple[int, int]) -> None:
        super().__init__()
        require_heads(dim, heads)
        self.heads, self.pretrain = heads, pretrain
        self.temperature = nn.Parameter(
            torch.full((heads, 1, 1), AT_FIRST).exp().sub(1).log()  # softplus gives AT_FIRST
        )
        self.query_embedding = nn.Parameter(torch.empty(heads, 1, dim // heads))
        nn.init.trunc_normal_(self.query_embedding, std=0.02)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.cpb_fc1 = nn.Linear(2, HIDDEN)
        self.cpb_fc2 = nn.Linear(HIDDEN, heads)

    def bias(self, queries: tuple[int, int], keys: tuple[int, int]) -> Tensor:
        """Bias of every pair of places: (heads, N, M)."""
        table, index = _pairs(queries, keys, self.pretrain)
        weight = self.cpb_fc1.weight
        found = self.cpb_fc2(F.relu(self.cpb_fc1(table.to(weight))))
        return found.T.index_select(1, index.flatten().to(weight.device)).unflatten(1, index.shape)


@implements("transnext")
class AggregatedAttention(_Biased):
    """Attention of each pixel to its window and to a pooled map, in one softmax.

    Args:
        dim: channels.
        heads: how many share them.
        ratio: by how much smaller the pooled map is, in height and in width.
        window: odd side of the neighbourhood.
        pooled: side of the pooled map, whatever the size of the map: the linear
            mode; by default it follows from the ratio.
        pretrain: height and width of the maps that the position bias was trained for.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if the window is even or heads do not divide dim.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        ratio: int = 8,
        window: int = 3,
        pooled: int | None = None,
        pretrain: tuple[int, int] = (56, 56),
    ) -> None:
        super().__init__(dim, heads, pretrain)
        if window % 2 == 0:
            raise FoveateError(f"a window of {window} pixels has no centre: give an odd one")
        self.ratio, self.window, self.pooled = ratio, window, pooled
        taps, head_dim = window * window, dim // heads
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, 2 * dim, 1)
        self.sr = nn.Conv2d(dim, dim, 1)
        self.norm = nn.LayerNorm(dim)
        self.relative_pos_bias_local = nn.Parameter(torch.empty(heads, taps))
        self.learnable_tokens = nn.Parameter(torch.empty(heads, head_dim, taps))
        self.learnable_bias = nn.Parameter(torch.zeros(heads, 1, taps))
        nn.init.trunc_normal_(self.relative_pos_bias_local, std=0.0004)
        nn.init.trunc_normal_(self.learnable_tokens, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2], x.shape[-1]
        small = self._pooled_size(size[0], size[1])
        q = F.normalize(split_heads(self.q(x), self.heads), dim=-1)
        inside = _inside(size[0], size[1], self.window, x.device)  # (taps, H, W)
        length = inside.sum(0).add(small[0] * small[1]).to(x.dtype).log().flatten()
        scaled = (q + self.query_embedding) * F.softplus(self.temperature) * length[:, None]

        k, v = self.kv(x).chunk(2, dim=1)
        k = F.normalize(k.unflatten(1, (self.heads, -1)), dim=2).flatten(1, 2)
        near = compare_neighbours(_as_map(scaled, size), k, self.heads, self.window)
        near = near + self.relative_pos_bias_local[:, :, None, None]
        near = near.masked_fill(~inside, float("-inf")).flatten(3).mT

        pool = F.adaptive_avg_pool2d(F.gelu(self.sr(x)), small)
        pool = self.norm(pool.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        pool_k, pool_v = (split_heads(t, self.heads) for t in self.kv(pool).chunk(2, dim=1))
        far = scaled @ F.normalize(pool_k, dim=-1).mT + self.bias(size, small)

        taps = self.window**2
        shares = torch.cat((near, far), dim=-1).softmax(dim=-1)
        near, far = shares.split((taps, shares.shape[-1] - taps), dim=-1)
        near = near + q @ self.learnable_tokens + self.learnable_bias
        local = mix_neighbours(v, near.mT.unflatten(3, size), self.window)
        return self.proj(local + _as_map(far @ pool_v, size))

    def _pooled_size(self, high: int, wide: int) -> tuple[int, int]:
        if self.pooled:
            return self.pooled, self.pooled
        return max(1, high // self.ratio), max(1, wide // self.ratio)


@implements("transnext")
class CosineAttention(_Biased):
    """Length-scaled cosine attention between all pixels, for maps that are small.

    Args:
        dim: channels.
        heads: how many share them.
        pretrain: height and width of the maps that the position bias was trained for.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, heads: int = 8, pretrain: tuple[int, int] = (7, 7)) -> None:
        super().__init__(dim, heads, pretrain)
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2], x.shape[-1]
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=1))
        length = math.log(size[0] * size[1])
        q = (F.normalize(q, dim=-1) + self.query_embedding) * F.softplus(self.temperature) * length
        bias = self.bias(size, size).to(q.dtype)
        mixed = F.scaled_dot_product_attention(
            q, F.normalize(k, dim=-1), v, attn_mask=bias, scale=1.0
        )
        return self.proj(_as_map(mixed, size))


@implements("transnext")
class ConvGlu(nn.Module):
    """A gated linear unit whose gate sees 3x3 neighbours.

    Args:
        dim: channels.
        hidden: of an ungated layer of the same cost; two thirds of them are used.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        hidden = int(2 * hidden / 3)
        self.fc1 = nn.Conv2d(dim, 2 * hidden, 1)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Conv2d(hidden, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=1)
        return self.fc2(F.gelu(self.dwconv(gate)) * value)


def _as_map(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, heads, N, C / heads) to (B, C, H, W)."""
    return x.mT.flatten(1, 2).unflatten(2, size)


def _inside(high: int, wide: int, window: int, device: torch.device) -> Tensor:
    """Which neighbours lie on the map: bool (taps, H, W)."""
    reach = torch.arange(window, device=device) - window // 2
    rows = torch.arange(high, device=device) + reach[:, None]
    columns = torch.arange(wide, device=device) + reach[:, None]
    rows, columns = (rows >= 0) & (rows < high), (columns >= 0) & (columns < wide)
    return (rows[:, None, :, None] & columns[None, :, None, :]).flatten(0, 1)


def _pairs(
    queries: tuple[int, int], keys: tuple[int, int], pretrain: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Log-spaced offsets between places and pooled places: the distinct ones (U, 2), and which of
    them each pair has (N, M)."""
    (down, rows), (right, columns) = (
        _offsets(q, k, p) for q, k, p in zip(queries, keys, pretrain, strict=True)
    )
    table = torch.stack(torch.meshgrid(down, right, indexing="ij"), dim=-1).flatten(0, 1)
    index = rows[:, None, :, None] * len(right) + columns[None, :, None, :]
    return table, index.reshape(queries[0] * queries[1], keys[0] * keys[1])


def _offsets(queries: int, keys: int, pretrain: int) -> tuple[Tensor, Tensor]:
    """Along one axis: log-spaced distances in order, and which one each pair has (queries, keys).

    Twice a pooled place's centre is a whole number, so distances lie on a grid.
    """
    centres = [i * queries // keys - (-(i + 1) * queries // keys) - 1 for i in range(keys)]
    step = 2 if len({c % 2 for c in centres}) == 1 else 1
    least = -max(centres)
    doubled = torch.arange(least, 2 * (queries - 1) - min(centres) + 1, step)
    apart = doubled / 2 / max(pretrain - 1, 1) * REACH
    scaled = apart.sign() * (apart.abs() + 1).log2() / math.log2(REACH)
    pairs = 2 * torch.arange(queries)[:, None] - torch.tensor(centres)
    return scaled, (pairs - least) // step
