"""Attention whose heads can do nothing without growing outliers: clipped softmax, and gates.

Source: quantizable_transformers (arXiv 2306.12929, section 4 and appendix B.1); formulas and
initial values were checked against the authors' code, which is under the clear BSD licence.
`foveate.surgery.quantizable_transformers` gives both to any network.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.attention import join_heads, require_heads, split_heads

Kind = Literal["linear", "mlp", "all_heads"]


@implements("quantizable_transformers")
def stretch(p: Tensor, gamma: float, zeta: float = 1.0) -> Tensor:
    """Stretch probabilities from (0, 1) to (gamma, zeta), and clip them to [0, 1].

    Those below -gamma / (zeta - gamma) become exactly 0, those above (1 - gamma) /
    (zeta - gamma) exactly 1, and neither passes a gradient.

    Shapes: any, to the same.
    """
    return torch.clamp((zeta - gamma) * p + gamma, 0.0, 1.0)


@implements("quantizable_transformers")
class ClippedSoftmax(nn.Module):
    """Softmax over the last axis that reaches exact zeros (and ones) from finite inputs.

    Args:
        alpha: how many times the mean probability, 1 / places, is taken from all: then gamma
            is -alpha / places, whatever their number. Of language models 2 to 4 served best,
            of ViT-S/16 at 197 places 0.6 (gamma -0.003); 0 is plain softmax. From places /
            (places - 1) on, even attention is cut off wholly and learns nothing: a network
            that begins with it must have less.
        gamma: at most 0, where alpha is None.
        zeta: at least 1; the authors found no use in more.

    Shapes: scores (..., places) to the same.
    Raises: FoveateError unless just one of alpha and gamma is given, and each in its bounds.
    """

    def __init__(
        self, alpha: float | None = 0.6, gamma: float | None = None, zeta: float = 1.0
    ) -> None:
        super().__init__()
        require_stretch(alpha, gamma, zeta)
        self.alpha, self.gamma, self.zeta = alpha, gamma, zeta

    def forward(self, scores: Tensor) -> Tensor:
        return self.clipped(scores.softmax(-1))

    def clipped(self, p: Tensor) -> Tensor:
        """What becomes of softmax's probabilities."""
        gamma = -self.alpha / p.shape[-1] if self.alpha is not None else self.gamma
        assert gamma is not None
        return stretch(p, gamma, self.zeta)


def require_stretch(alpha: float | None, gamma: float | None, zeta: float) -> None:
    """Raises: FoveateError that names the field."""
    if (alpha is None) == (gamma is None):
        raise FoveateError(f"alpha is {alpha} and gamma {gamma}: give one, and None for the other")
    if alpha is not None and alpha < 0:
        raise FoveateError(f"alpha is {alpha}: give 0 or more")
    if gamma is not None and gamma > 0:
        raise FoveateError(f"gamma is {gamma}: give 0 or less")
    if zeta < 1:
        raise FoveateError(f"zeta is {zeta}: give 1 or more")


@implements("quantizable_transformers")
class AttentionGate(nn.Module):
    """Says of every token, for each head, how much of what the head attends to it takes.

    Args:
        dim: channels of the tokens.
        heads: how many share them.
        kind: what each gate looks at: "linear" at its own head's share of the channels,
            linearly; "mlp" at the same through one hidden layer; "all_heads" at all channels.
        hidden: units of the "mlp", for each head.
        opened: how far gates stand open when training begins, between 0 and 1. Of ViT the
            authors found 0.1 to 0.5 to serve, and up to 0.9 with a norm after the patches.
        neutral: gates are divided by `opened` and begin with weights of zero, so that at
            first they change nothing: for networks that are trained already. (The authors
            draw these weights with a deviation of 0.01.)

    Shapes: tokens (B, N, dim) or maps (B, dim, H, W) to gates (B, heads, N or H W, 1).
    Raises: FoveateError that names the field.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kind: Kind = "linear",
        hidden: int = 4,
        opened: float = 0.5,
        neutral: bool = False,
    ) -> None:
        super().__init__()
        require_gate(kind, hidden, opened)
        groups = 1 if kind == "all_heads" else heads
        require_heads(dim, groups)
        if kind == "mlp":
            inner = nn.Conv2d(dim, heads * hidden, 1, groups=heads)
            last = nn.Conv2d(heads * hidden, heads, 1, groups=heads)
            self.score: nn.Module = nn.Sequential(inner, nn.ReLU(), last)
        else:
            self.score = last = nn.Conv2d(dim, heads, 1, groups=groups)
        assert last.bias is not None
        nn.init.constant_(last.bias, math.log(opened / (1 - opened)))
        self.scale = 1 / opened if neutral else 1.0
        if neutral:
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mT[..., None] if x.ndim == 3 else x
        return self.scale * self.score(x).sigmoid().flatten(2)[..., None]


def require_gate(kind: str, hidden: int, opened: float) -> None:
    """Raises: FoveateError that names the field."""
    if kind not in ("linear", "mlp", "all_heads"):
        raise FoveateError(f"kind is {kind!r}: give linear, mlp or all_heads")
    if hidden < 1:
        raise FoveateError(f"hidden is {hidden}: give 1 or more")
    if not 0 < opened < 1:
        raise FoveateError(f"opened is {opened}: give more than 0 and less than 1")


@implements("quantizable_transformers")
class QuantizableAttention(nn.Module):
    """Softmax attention of every place to every place, clipped, gated, or both.

    Args:
        dim: channels.
        heads: how many share them.
        alpha: of `ClippedSoftmax`; None leaves softmax as it is, and attention fused.
        gate: kind of `AttentionGate`, or None.
        opened: of the gates.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if heads do not divide dim, or a field is out of its bounds.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        alpha: float | None = None,
        gate: Kind | None = "linear",
        opened: float = 0.5,
    ) -> None:
        super().__init__()
        require_heads(dim, heads)
        self.heads = heads
        self.qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.softmax = None if alpha is None else ClippedSoftmax(alpha)
        self.gate = AttentionGate(dim, heads, gate, opened=opened) if gate else None
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, dim=1))
        if self.softmax is None:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mixed = self.softmax(q * q.shape[-1] ** -0.5 @ k.mT) @ v
        if self.gate is not None:
            mixed = mixed * self.gate(x)
        return self.proj(join_heads(mixed, x.shape[2:]))
