"""Training with ReSTE: the estimator begins straight through, and nears sign as it goes on.

Source: reste (arXiv 2308.06689), with the schedule and indicators of the authors' code
(github.com/DravenALG/ReSTE). They raise the power once an epoch, and here it rises in every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.reste import BinaryLayer, Sign, estimating_error, gradient_variance
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.data import Batch
    from foveate.train.loop import Training


@implements("reste")
class RaisePower(Ingredient):
    """Raise the power of a binarised model's estimators from 1 to its last over the training.

    Args:
        last: o at the end, 1 or more. The authors' is 3: more estimates sign better, and
            makes gradients less stable.

    Raises: FoveateError if last is less than 1, or, when a training starts, if no layer of the
        model is binary.
    """

    def __init__(self, last: float = 3.0) -> None:
        if last < 1:
            raise FoveateError(f"last is {last}: give 1 or more")
        self.last = last

    def start(self, training: Training) -> None:
        self._signs = [m for m in training.model.modules() if isinstance(m, Sign)]
        if not self._signs:
            raise FoveateError("no layer of the model is binary: apply Binarise to it first")

    def batch(self, training: Training, batch: Batch) -> Batch:
        for sign in self._signs:
            sign.power = power_at(training.clock.progress, self.last)
        return batch


@implements("reste")
def power_at(along: float, last: float) -> float:
    """1 + (last - 1) (1 - cos(pi t / 2)): slowly at first.

    Args:
        along: t, how much of the training is over, in [0, 1].
        last: the power at its end.
    """
    return 1 + (last - 1) * (1 - math.cos(math.pi / 2 * along))


@dataclass(frozen=True)
class Indicators:
    """The two sides of the equilibrium, summed over a model's binary weights.

    Attributes:
        error: of the estimator with its power of now, `estimating_error`.
        variance: of the gradients' magnitudes, `gradient_variance`.
    """

    error: float
    variance: float


@implements("reste")
def indicators(model: nn.Module) -> Indicators:
    """Measure both, between the way back and the next step: in an ingredient's `gradients`.

    Raises: FoveateError if the model has no binary layer with a gradient.
    """
    layers = [m for m in model.modules() if isinstance(m, BinaryLayer)]
    pairs = [(m, m.weight.grad) for m in layers if m.weight.grad is not None]
    if not pairs:
        raise FoveateError(
            "no binary layer of the model has a gradient: apply Binarise, and ask on the way back"
        )
    return Indicators(
        error=sum(estimating_error(m.weight.detach(), m.sign.power) for m, _ in pairs),
        variance=sum(gradient_variance(gradient) for _, gradient in pairs),
    )
