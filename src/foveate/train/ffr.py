"""Feature flow regularisation: features are to change little, and evenly, from block to block.

Source: ffr (Feature Flow Regularization: Improving Structured Sparsity in Deep Neural Networks,
2021). The norm is taken as a mean of magnitudes, so that its weight means the same at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.layers import matches
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.data import Batch
    from foveate.train.loop import Training


@implements("ffr")
class FeatureFlow(Ingredient):
    """Add the length and the curvature of the path that features take through the blocks.

    Blocks that need not do anything then do less, and their filters fade: `RemoveFaint`
    removes them.

    Args:
        points: patterns of the names of blocks, in the model, whose outputs are the path;
            three or more must be found.
        velocity, curvature: weights of the two terms.

    Raises: FoveateError if a weight is below 0, or when a training starts with fewer points.
    """

    def __init__(
        self, points: tuple[str, ...], velocity: float = 0.1, curvature: float = 0.1
    ) -> None:
        for name, value in (("velocity", velocity), ("curvature", curvature)):
            if value < 0:
                raise FoveateError(f"{name} is {value}: give 0 or more")
        self.points, self.velocity, self.curvature = points, velocity, curvature
        self._path: list[Tensor] = []
        self._handles: list[RemovableHandle] = []

    def start(self, training: Training) -> None:
        named = training.model.named_modules()
        self._blocks = [block for name, block in named if matches(name, self.points)]
        if len(self._blocks) < 3:
            raise FoveateError(
                f"points match {len(self._blocks)} parts of the model: give patterns of three or "
                "more blocks, such as backbone.layer*.?"
            )

    def batch(self, training: Training, batch: Batch) -> Batch:
        path = self._path

        def passed(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            path.append(output.float())

        self._handles = [block.register_forward_hook(passed) for block in self._blocks]
        return batch

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        velocity, curvature = flow(self._path)
        self._path.clear()
        return loss + self.velocity * velocity + self.curvature * curvature

    def gradients(self, training: Training) -> None:
        for handle in self._handles:
            handle.remove()


@implements("ffr")
def flow(path: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sums of the mean magnitudes of f_{l+1} - f_l, and of f_{l+1} - 2 f_l + f_{l-1}.

    Earlier features are matched to later ones by `shortcut`.

    Args:
        path: f_1, f_2 ..., three or more maps (B, C, H, W).
    """
    lengths = [_length(b - shortcut(a, b)) for a, b in pairwise(path)]
    bends = []
    for a, b, c in zip(path, path[1:], path[2:], strict=False):
        bends.append(_length(c - 2 * shortcut(b, c) + shortcut(shortcut(a, b), c)))
    return torch.stack(lengths).sum(), torch.stack(bends).sum()


def shortcut(x: Tensor, like: Tensor) -> Tensor:
    """A map in the shape of a deeper one, with no weights, as CIFAR's ResNets have it.

    Every so many pixels are taken, and channels of zeros stand around those that there are;
    where there are more channels than the deeper map has, the middle ones are taken.

    Args:
        x, like: (B, C, H, W) and (B, D, H / s, W / s).
    """
    if x.shape[2:] != like.shape[2:]:
        x = F.interpolate(x, like.shape[2:], mode="nearest")
    more = like.shape[1] - x.shape[1]
    before = abs(more) // 2
    if more < 0:
        return x[:, before : before + like.shape[1]]
    return F.pad(x, (0, 0, 0, 0, before, more - before))


def _length(x: Tensor) -> Tensor:
    return x.abs().mean()
