"""Training a quantised model: when its norms and ranges come to rest.

Source: quant_whitepaper (arXiv 1806.08342, section 3.2.2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.integers import Range
from foveate.surgery.quant_whitepaper import QuantisedLayer
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.train.loop import Training


@implements("quant_whitepaper")
class QuantisationAware(Ingredient):
    """Freeze the statistics of folded norms and the ranges of activations late in the training of
    a model that `Quantise` has edited, so that it ends as it will be used.

    Args:
        freeze: share of the training after which they stay as they are.

    Raises: FoveateError if freeze is no share, or the model has no quantised layer.
    """

    def __init__(self, freeze: float = 0.7) -> None:
        if not 0 <= freeze <= 1:
            raise FoveateError(f"freeze is {freeze}: give 0 to 1")
        self.freeze = freeze

    def start(self, training: Training) -> None:
        modules = list(training.model.modules())
        self._layers = [module for module in modules if isinstance(module, QuantisedLayer)]
        self._ranges = [module for module in modules if isinstance(module, Range)]
        if not self._layers:
            raise FoveateError("no layer of the model is quantised: apply Quantise to it first")
        self._freeze(training)

    def step_end(self, training: Training) -> None:
        for part in self._ranges:
            part.low.copy_(training.world.mean(part.low))
            part.high.copy_(training.world.mean(part.high))
        for layer in self._layers:
            if layer.norm is not None:
                layer.norm.running_mean.copy_(training.world.mean(layer.norm.running_mean))
                layer.norm.running_var.copy_(training.world.mean(layer.norm.running_var))
        self._freeze(training)

    def _freeze(self, training: Training) -> None:
        for layer in self._layers:
            layer.frozen = training.clock.progress >= self.freeze
