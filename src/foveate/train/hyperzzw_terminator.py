"""Slow neural loss: kernels of deep blocks are drawn near to those of shallow ones.

Source: hyperzzw_terminator (arXiv 2401.17948, section 3). The authors' code bears no licence and
was read for the mechanism only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.train.loop import Training


@implements("hyperzzw_terminator")
class SlowNeuralLoss(Ingredient):
    """Adds the distance between the blocks' global kernels, a feedback to the slow networks alone.

    Args:
        weight: of what is added, 1 as published.

    Raises: FoveateError when a training starts whose backbone has no hyper-kernels.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def start(self, training: Training) -> None:
        backbone = training.model.backbone
        if not hasattr(backbone, "hyper_kernels"):
            raise FoveateError(
                f"{type(backbone).__name__} has no hyper-kernels for a slow neural loss: train a "
                "Terminator, or leave the loss out"
            )

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        backbone: Any = training.model.backbone
        return loss + self.weight * slow_neural_loss(backbone.hyper_kernels())


def slow_neural_loss(kernels: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of every two kernels, the shallower repeated over channels; summed.

    Args:
        kernels: (1, dim, *size) from the first block to the last, each dim a multiple of those
            before.
    """
    distances = [
        F.mse_loss(shallow.repeat(1, deep.shape[1] // shallow.shape[1], *tail), deep)
        for i, deep in enumerate(kernels)
        for shallow in kernels[:i]
        for tail in [(1,) * (deep.ndim - 2)]
    ]
    return torch.stack(distances).sum()
