"""A map and a latent code that look at each other while the map is made and the code classifies.

Source: dyn_perceiver (arXiv 2306.11248, sections 3.1 to 3.3). The authors' code is under MIT.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.ops.attention import require_heads

NARROW = 8  # a map looks at the latent code through so many times fewer channels
State = tuple[Tensor, ...]
"""The map, the latent code, and from the last exit but one on what the last exit said."""


@implements("dyn_perceiver")
class TokenAttention(nn.Module):
    """Tokens look at others, or at themselves, then pass a channel mixer; both are residual.

    Args:
        dim: channels of the tokens.
        seen: channels of what they look at; None for the tokens themselves.
        inner: width of queries, keys and values; by default dim.
        heads: how many share it.
        widening: hidden width of the channel mixer over dim.
        places: how many are seen, if each is to have a learnt vector that is added to its key.

    Shapes: (B, N, dim), and what is seen (B, M, seen), to (B, N, dim).
    Raises: FoveateError if heads do not divide the inner width.
    """

    def __init__(
        self,
        dim: int,
        seen: int | None = None,
        inner: int | None = None,
        heads: int = 1,
        widening: int = 1,
        places: int | None = None,
    ) -> None:
        super().__init__()
        inner = inner or dim
        require_heads(inner, heads)
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.norm_seen = nn.LayerNorm(seen) if seen else None
        self.q = nn.Linear(dim, inner, bias=False)
        self.k = nn.Linear(seen or dim, inner, bias=False)
        self.v = nn.Linear(seen or dim, inner, bias=False)
        self.places = nn.Parameter(torch.zeros(1, places, inner)) if places else None
        self.proj = nn.Linear(inner, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, widening * dim),
            nn.GELU(),
            nn.Linear(widening * dim, dim),
        )

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        query = self.norm(x)
        seen = query if self.norm_seen is None else self.norm_seen(seen)
        key = self.k(seen)
        if self.places is not None:
            key = key + self.places
        q, k, v = (
            t.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for t in (self.q(query), key, self.v(seen))
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(mixed)
        return x + self.mlp(x)


class VectorNorm(nn.BatchNorm1d):
    """Batch norm of vectors, by its running statistics where a batch has one. Shapes: (B, dim)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.shape[0] > 1:
            return super().forward(input)
        known = self.running_mean, self.running_var
        return F.batch_norm(input, *known, self.weight, self.bias, eps=self.eps)


def recollection(num_classes: int, dim: int) -> nn.Sequential:
    """What an exit said, for a later one: (B, num_classes) to (B, dim)."""
    return nn.Sequential(nn.Linear(num_classes, dim), VectorNorm(dim), nn.ReLU(inplace=True))


@implements("dyn_perceiver")
class LatentStage(nn.Module):
    """A map and a latent code look at each other; the code thinks, and the map goes through a body.

    Args:
        dim: channels of both.
        latents: vectors of the code.
        before: vectors and channels of the code before; None where it begins.
        depth, heads, widening: of the self-attention.
        side: the map is pooled to that many places a side before the code looks at it.
        body: stage of the network.
    """

    def __init__(
        self,
        dim: int,
        latents: int,
        before: tuple[int, int] | None,
        depth: int,
        heads: int,
        widening: int,
        side: int,
        body: nn.Module,
    ) -> None:
        super().__init__()
        self.side = side
        self.latent: nn.Parameter | None = None
        if before is None:
            self.latent = nn.Parameter(torch.empty(latents, dim).normal_(0, 0.02).clamp_(-2, 2))
        else:
            self.mix = nn.Sequential(nn.LayerNorm(before[0]), nn.Linear(before[0], latents))
            self.expand = nn.Sequential(nn.LayerNorm(before[1]), nn.Linear(before[1], dim))
            self.to_map = TokenAttention(dim, dim, dim // NARROW)
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.to_latent = TokenAttention(dim, dim, places=side * side)
        self.think = nn.Sequential(
            *(TokenAttention(dim, heads=heads, widening=widening) for _ in range(depth))
        )
        self.body = body
        self.recall: nn.Sequential | None = None
        self.exit: nn.Linear | None = None

    def add_exit(self, num_classes: int, recalls: bool) -> None:
        """Classify by the code, and by what the exit before said if `recalls`."""
        dim = self.dwconv.out_channels
        self.recall = recollection(num_classes, dim) if recalls else None
        self.exit = nn.Linear(2 * dim if recalls else dim, num_classes)

    def look(self, x: Tensor, z: Tensor | None = None, said: Tensor | None = None) -> State:
        """All but the body: map, code, and what the exit says if there is one."""
        if z is None:
            assert self.latent is not None
            code = self.latent.expand(x.shape[0], -1, -1)
        else:
            code: Tensor = self.expand(self.mix(z.mT).mT)
            x = self.to_map(x.flatten(2).mT, code).mT.unflatten(2, x.shape[2:])
        seen = F.adaptive_avg_pool2d(self.dwconv(x) + x, self.side)
        code = self.think(self.to_latent(code, seen.flatten(2).mT))
        if self.exit is None:
            return x, code
        thought = code.mean(1)
        if self.recall is not None:
            thought = torch.cat((thought, self.recall(said)), dim=1)
        return x, code, self.exit(thought)

    def forward(self, state: Tensor | State) -> Any:
        x, *others = self.look(*(state if isinstance(state, tuple) else (state,)))
        return (self.body(x), *others)


class Merge(nn.Module):
    """The last map looks at the code, and takes its mean and what the exit before said behind it.

    Args:
        dim, latent: channels of the map and of the code.
    """

    def __init__(self, dim: int, latent: int) -> None:
        super().__init__()
        self.attention = TokenAttention(dim, latent, dim // NARROW)
        self.recall: nn.Sequential | None = None

    def forward(self, x: Tensor, z: Tensor, said: Tensor | None = None) -> Tensor:
        size = x.shape[2:]
        x = self.attention(x.flatten(2).mT, z).mT.unflatten(2, size)
        parts = [z.mean(1)] + ([self.recall(said)] if self.recall is not None else [])
        return torch.cat([x, *(part[:, :, None, None].expand(-1, -1, *size) for part in parts)], 1)


class LastStage(LatentStage):
    """The same, whose map and code then `Merge`."""

    def __init__(self, *args: Any, width: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.merge = Merge(width, self.dwconv.out_channels)

    def add_exit(self, num_classes: int, recalls: bool) -> None:
        """The same, and a recollection of it for the merging."""
        super().add_exit(num_classes, recalls)
        self.merge.recall = recollection(num_classes, self.dwconv.out_channels)

    def forward(self, state: Tensor | State) -> Tensor:
        return self.merge(*super().forward(state))
