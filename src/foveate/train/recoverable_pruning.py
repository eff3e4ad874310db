"""Training for pruning without tuning: filters on a sphere, and weights that take sides.

Source: recoverable_pruning (Pruning On-the-Fly: A Recoverable Pruning Method without Fine-tuning,
2022). What pushes weights apart is ours: the paper says what it does, and this does it with no
number to choose but its weight.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import chains
from foveate.surgery.gradual_pruning import largest
from foveate.surgery.layers import matches
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.data import Batch
    from foveate.train.loop import Training


@implements("recoverable_pruning")
class Polarise(Ingredient):
    """Keep filters at length 1, and push a share of each layer's weights to zero, the rest off it.

    It is about layers with a batch norm behind them, which takes back the length. Small are
    those that are at the time. `MaskSmallest` or `FillWithMean` prune afterwards.

    Args:
        sparsity: share that is pushed to zero.
        strength: weight of `polarity`, summed over layers.
        skip: patterns of layers' names, in the model, to leave.

    Raises: FoveateError that names the field, or if no layer has a batch norm behind it.
    """

    def __init__(
        self, sparsity: float = 0.5, strength: float = 0.1, skip: tuple[str, ...] = ()
    ) -> None:
        if not 0 < sparsity < 1:
            raise FoveateError(f"sparsity is {sparsity}: give more than 0 and less than 1")
        if strength < 0:
            raise FoveateError(f"strength is {strength}: give 0 or more")
        self.sparsity, self.strength, self.skip = sparsity, strength, skip
        self._layers: list[nn.Module] = []

    def start(self, training: Training) -> None:
        size, device = training.model.preprocess.size, training.world.device
        found = chains(training.model, torch.zeros(2, 3, size, size, device=device))
        self._layers = [
            chain.layer
            for name, chain in found.items()
            if chain.norm is not None and not matches(name, self.skip)
        ]
        if not self._layers:
            raise FoveateError("no layer of the model has a batch norm behind it to be polarised")

    def batch(self, training: Training, batch: Batch) -> Batch:
        if training.clock.step == 0:
            self._onto_sphere()
        return batch

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        terms = [polarity(layer.get_parameter("weight"), self.sparsity) for layer in self._layers]
        return loss + self.strength * torch.stack(terms).sum()

    def step_end(self, training: Training) -> None:
        self._onto_sphere()

    @torch.no_grad()
    def _onto_sphere(self) -> None:
        for layer in self._layers:
            weight = layer.get_parameter("weight")
            length = weight.flatten(1).norm(dim=1).clamp_min(1e-12)
            weight.div_(length.view(-1, *[1] * (weight.ndim - 1)))


@implements("recoverable_pruning")
def polarity(weight: Tensor, sparsity: float) -> Tensor:
    """Mean magnitude of the smallest weights over that of the others: 1 at most, 0 when apart.

    Args:
        weight: of any shape.
        sparsity: share of the smallest, in (0, 1).
    """
    size = weight.abs().flatten()
    others = largest({"": size.detach()}, {"": sparsity})[""]
    small, large = size[~others], size[others]
    return small.mean() / large.mean().clamp_min(1e-12)
