"""Pruning by magnitude: the smallest weights of every layer, or of all layers together, go.

Source: gradual_pruning (arXiv 1710.01878, section 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.masks import Mask


@implements("gradual_pruning")
@dataclass(frozen=True, kw_only=True)
class MaskSmallest(Mask):
    """Hold the weights of least magnitude at zero, all at once.

    Args:
        sparsity: share that is held.
        scope: the share of each `layer`, or of all layers together, `global`.

    Raises: FoveateError if sparsity is no share below 1, or there is no such scope.
    """

    sparsity: float = 0.5
    scope: Literal["layer", "global"] = "layer"

    def __post_init__(self) -> None:
        demand_share("sparsity", self.sparsity)
        demand_scope(self.scope)

    def choose(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = {name: weight.abs() for name, weight in weights.items()}
        share = dict.fromkeys(sizes, self.sparsity)
        return largest(sizes, share if self.scope == "layer" else self.sparsity)


def largest(
    scores: Mapping[str, Tensor], sparsity: Mapping[str, float] | float
) -> dict[str, Tensor]:
    """Masks that hold what scores least; of equals, what comes first.

    Args:
        scores: of weights, by name and of their shapes.
        sparsity: share that is held of each, or of all together.

    Returns: bool, of the same shapes; round(share times number) are False.
    """
    if isinstance(sparsity, Mapping):
        return {name: _largest(score, sparsity[name]) for name, score in scores.items()}
    flat = _largest(torch.cat([score.flatten() for score in scores.values()]), sparsity)
    parts = flat.split([score.numel() for score in scores.values()])
    return {n: p.view(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)}


def _largest(score: Tensor, sparsity: float) -> Tensor:
    mask = torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    order = score.flatten().argsort(stable=True)
    mask[order[: round(sparsity * score.numel())]] = False
    return mask.view(score.shape)


def demand_share(name: str, value: float) -> None:
    """Raises: FoveateError if a field is no share from 0 and below 1."""
    if not 0 <= value < 1:
        raise FoveateError(f"{name} is {value}: give 0 or more and less than 1")


def demand_scope(scope: str) -> None:
    """Raises: FoveateError if there is no such scope."""
    if scope not in ("layer", "global"):
        raise FoveateError(f"scope is {scope!r}: choose layer or global")
