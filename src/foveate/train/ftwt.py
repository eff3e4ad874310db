"""Training the heads that choose filters, beside the task.

Source: ftwt (arXiv 2110.08232, section 3). The authors' code states no licence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from foveate.adaptive.ftwt import masked_convs
from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from torch import Tensor

    from foveate.data import Batch
    from foveate.train.loop import Training


@implements("ftwt")
class LearnMasks(Ingredient):
    """Add the heads' losses to the task's; no gradient goes from either to the other's weights.

    For a model that `FireTogether` has edited, best after it was trained
    without masks.

    Args:
        weight: of the mean of the heads' losses.
        cooldown: share of the training after which the heads stay as they are,
            and the network settles on their choices.

    Raises: FoveateError if cooldown is no share, or the model has no heads.
    """

    def __init__(self, weight: float = 1.0, cooldown: float = 0.5) -> None:
        if not 0 <= cooldown <= 1:
            raise FoveateError(f"cooldown is {cooldown}: give 0 to 1")
        self.weight, self.cooldown = weight, cooldown

    def start(self, training: Training) -> None:
        self._layers = masked_convs(training.model)
        if not self._layers:
            raise FoveateError("no convolution has a head: apply FireTogether to the model first")

    def batch(self, training: Training, batch: Batch) -> Batch:
        for layer in self._layers:
            layer.learning = training.clock.progress < self.cooldown
        return batch

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        losses = [layer.loss for layer in self._layers if layer.loss is not None]
        for layer in self._layers:
            layer.loss = None
        return loss + self.weight * torch.stack(losses).mean() if losses else loss
