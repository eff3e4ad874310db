"""GLMix: convolution on the grid beside attention among a few soft clusters of it.

Source: glmix (arXiv 2411.14429, section 3). The authors' code is under MIT.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.attention import SelfAttention


@implements("glmix")
class GLMix(nn.Module):
    """A local and a global path: convolutions, and attention among slots that places fill softly.

    Slots begin as averages of parts of the map. Each gathers what is like it, by a
    softmax over places; they attend to each other; each place takes back what it is
    like, by a softmax over slots of the same logits. The cost grows with the number
    of places, not with its square.

    Args:
        dim: channels.
        heads: of the attention among slots.
        slots: how many, a square number unless they are learnt.
        local: odd side of the local kernel.
        learnt: slots begin as learnt vectors instead of averages.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if the slots form no square.
    """

    def __init__(
        self, dim: int, heads: int = 4, slots: int = 64, local: int = 5, learnt: bool = False
    ) -> None:
        super().__init__()
        self.side = math.isqrt(slots)
        if self.side**2 != slots and not learnt:
            raise FoveateError(f"{slots} slots form no square: give a square number")
        self.slots = nn.Parameter(0.02 * torch.randn(1, slots, dim)) if learnt else None
        self.scale = nn.Parameter(torch.tensor(dim**-0.5))
        self.attn = SelfAttention(dim, heads)
        self.local = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.Conv2d(dim, dim, local, padding=local // 2, groups=dim),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        """Mix x; slots begin as averages of `seed` (B, dim, H, W), by default of x itself."""
        logits, places = self.logits(x, seed), x.flatten(2)
        slots = places @ logits.softmax(2).mT
        slots = self.attn(slots.unsqueeze(3)).squeeze(3)
        spread = slots @ logits.softmax(1)
        return spread.view_as(x) + self.local(x)

    def logits(self, x: Tensor, seed: Tensor | None = None) -> Tensor:
        """How alike each slot is to each place: scaled cosines (B, slots, H W)."""
        if self.slots is None:
            first = F.adaptive_avg_pool2d(x if seed is None else seed, self.side).flatten(2).mT
        else:
            first = self.slots
        places = x.flatten(2)
        inverse = places.square().sum(1, keepdim=True).clamp_min(1e-24).rsqrt()
        return F.normalize(first, dim=2) @ places * (self.scale * inverse)
