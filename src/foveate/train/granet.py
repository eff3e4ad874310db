"""GraNet: after every closing of the masks, the weakest weights give way to where loss falls most.

Source: granet (arXiv 2106.10404, section 4.1). The authors' code was read for the order of
things: weights go over all layers together, and come back in the layer that they left.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from foveate.catalog import implements
from foveate.surgery.gradual_pruning import demand_share
from foveate.surgery.masks import Weight
from foveate.train.gradual_pruning import GradualPruning

if TYPE_CHECKING:
    from foveate.train.loop import Training


@implements("granet")
class GraNet(GradualPruning):
    """Gradual pruning that regrows: zero-cost neuroregeneration.

    Whenever masks close, and as often after they have, a share of the smallest free weights
    of each layer is held, too, and as many are freed whose gradients, in this very step, are
    largest; these begin at zero, with no momentum. With masks that hold much from the
    first, as `MaskAtRandom` gives them, the network is sparse throughout.

    Args:
        sparsity, begin, end, every, scope: as of `GradualPruning`.
        regrown: share of a layer's free weights that is exchanged at first; it falls to 0
            as half a cosine over the training.

    Raises: FoveateError that names the field, or if no weight has a mask.
    """

    def __init__(
        self,
        sparsity: float = 0.8,
        begin: float = 0.0,
        end: float = 0.75,
        every: int = 100,
        scope: Literal["layer", "global"] = "global",
        regrown: float = 0.5,
    ) -> None:
        super().__init__(sparsity, begin, end, every, scope)
        demand_share("regrown", regrown)
        self.regrown = regrown
        self._gradients: dict[str, Tensor] = {}

    def gradients(self, training: Training) -> None:
        found = {name: weight.value.grad for name, weight in self.weights.items()}
        self._gradients = {name: grad for name, grad in found.items() if grad is not None}

    def change(self, training: Training) -> None:
        progress = training.clock.progress
        self.close(progress)
        share = self.regrown * (1 + math.cos(math.pi * progress)) / 2
        for name, gradient in self._gradients.items():
            weight = self.weights[name]
            new = regenerate(weight, gradient, share)
            for held in training.optimizer.state.get(weight.value, {}).values():
                if isinstance(held, Tensor) and held.shape == new.shape:
                    held.masked_fill_(new, 0)

    def _is_due(self, training: Training) -> bool:
        begun = training.clock.progress >= self.begin
        return super()._is_due(training) or (begun and training.clock.step % self.every == 0)


@torch.no_grad()
def regenerate(weight: Weight, gradient: Tensor, share: float) -> Tensor:
    """Hold a share of the smallest free weights, and free as many of the largest gradients.

    What was held only just may be freed again, and keeps its value then.

    Args:
        weight: its mask is changed.
        gradient: of the loss by all of its weights, of its shape.
        share: of the free weights, in [0, 1].

    Returns: which weights are free and were not before: bool, of its shape.
    """
    before = weight.mask.flatten().clone()
    exchanged = round(share * int(before.count_nonzero()))
    mask = before.clone()
    size = weight.value.abs().flatten().masked_fill(~before, math.inf)
    mask[size.argsort(stable=True)[:exchanged]] = False
    pull = gradient.abs().flatten().masked_fill(mask, -1.0)
    mask[pull.argsort(stable=True, descending=True)[:exchanged]] = True
    weight.set(mask.view(weight.mask.shape))
    return (mask & ~before).view(weight.mask.shape)
