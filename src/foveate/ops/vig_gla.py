"""Gated linear attention over an image, in both directions at once.

Sources: vig_gla (arXiv 2405.18425, section 3), with the recurrence of arXiv 2312.06635.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError

CHUNK = 64
GATE_RANK = 16
GATE_DIVISOR = 16.0
EPS = 1e-6


def gla_recurrent(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """The recurrence: S_t = diag(exp(g_t)) S_(t-1) + k_t v_t^T, o_t = q_t S_t / sqrt(d).

    Args:
        q, k, gates: (B, heads, N, d); gates are logarithms, none above 0.
        v: (B, heads, N, e).

    Returns: (B, heads, N, e).
    """
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    rows = []
    for t in range(q.shape[2]):
        state = gates[:, :, t].exp()[..., None] * state + k[:, :, t, :, None] * v[:, :, t, None]
        rows.append((q[:, :, t, None] @ state).squeeze(2))
    return torch.stack(rows, 2) * q.shape[-1] ** -0.5


def gla_parallel(q: Tensor, k: Tensor, v: Tensor, gates: Tensor) -> Tensor:
    """The same as a masked attention: row t weighs v_s by q_t · (k_s exp(g_(s+1) + ... + g_t)).

    Quadratic in N, in time and in memory; it is there to be read and compared with.
    """
    sums = gates.cumsum(2)
    decay = (sums[:, :, :, None] - sums[:, :, None]).clamp(max=0).exp()
    scores = torch.einsum("bhtd,bhsd,bhtsd->bhts", q, k, decay).tril()
    return scores @ v * q.shape[-1] ** -0.5


def gla_chunked(q: Tensor, k: Tensor, v: Tensor, gates: Tensor, chunk: int = CHUNK) -> Tensor:
    """The same chunk by chunk: attention within each, a state from one to the next. Linear in N."""
    n, scale = q.shape[2], q.shape[-1] ** -0.5
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    parts = []
    for start in range(0, n, chunk):
        rows = slice(start, start + chunk)
        sums = gates[:, :, rows].cumsum(2)
        middle = sums[:, :, sums.shape[2] // 2, None]
        key, value = k[:, :, rows], v[:, :, rows]
        decayed = q[:, :, rows] * sums.exp()
        # Halving the exponents' range around the middle keeps both factors finite.
        scores = (q[:, :, rows] * (sums - middle).exp()) @ (key * (middle - sums).exp()).mT
        parts.append(scores.tril() @ value + decayed @ state)
        last = sums[:, :, -1:]
        state = last.mT.exp() * state + (key * (last - sums).exp()).mT @ value
    return torch.cat(parts, 2) * scale


@implements("vig_gla")
class BidirectionalGla(nn.Module):
    """Gated linear attention from the first pixel to the last and back, with its own gates each
    way, mixed by a gate with what a depthwise 3x3 sees nearby.

    Queries, keys and values are the same both ways, and one scan does both.

    Args:
        dim: channels.
        heads: how many share them.
        key_ratio: channels of queries and keys over those of values.
        act: SiLU behind the 3x3 and before the last layer.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if heads do not divide the channels.
    """

    def __init__(self, dim: int, heads: int = 4, key_ratio: float = 0.5, act: bool = True) -> None:
        super().__init__()
        keys = int(dim * key_ratio)
        if dim % heads or keys % heads:
            raise FoveateError(
                f"{dim} channels and {keys} of keys cannot be divided among {heads} heads: give "
                "another number of heads"
            )
        self.heads, self.parts = heads, (keys, keys, dim)
        self.act = nn.SiLU() if act else nn.Identity()
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.qkv_proj = nn.Linear(dim, sum(self.parts), bias=False)
        self.gk_proj = nn.Sequential(
            nn.Linear(dim, GATE_RANK, bias=False), nn.Linear(GATE_RANK, 2 * keys)
        )
        self.g_proj = nn.Linear(dim, dim)
        self.g_norm = nn.RMSNorm(dim // heads, eps=EPS)
        self.l_norm = nn.RMSNorm(dim // heads, eps=EPS)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        matrices = (self.local, self.qkv_proj, *self.gk_proj, self.g_proj, self.o_proj)
        for layer in matrices:
            nn.init.xavier_uniform_(layer.weight, gain=2**-2.5)  # pyright: ignore

    def forward(self, x: Tensor) -> Tensor:
        near = self.act(self.local(x)).flatten(2).mT
        q, k, v = (self._split(t) for t in self.qkv_proj(near).split(self.parts, dim=-1))
        forth, back = self.gk_proj(near).chunk(2, dim=-1)
        gates = torch.cat((self._split(forth), self._split(back).flip(2)), dim=1)
        gates = F.logsigmoid(gates) / GATE_DIVISOR
        q, k, v = (torch.cat((t, t.flip(2)), dim=1) for t in (q, k, v))
        forth, back = gla_chunked(q, k, v, gates).split(self.heads, dim=1)
        far = self.g_norm((forth + back.flip(2)) / 2)
        share = self._split(self.g_proj(near).sigmoid())
        mixed = far * share + self.l_norm(self._split(near)) * (1 - share)
        out = self.o_proj(self.act(mixed.transpose(1, 2).flatten(2)))
        return out.mT.unflatten(2, x.shape[2:])

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
