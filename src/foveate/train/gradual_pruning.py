"""Gradual pruning: masks that close in on the smallest weights while the network learns.

Source: gradual_pruning (arXiv 1710.01878, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.gradual_pruning import demand_scope, demand_share, largest
from foveate.surgery.masks import Weight, masked
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.train.loop import Training


@implements("gradual_pruning")
def cubic_sparsity(along: float, initial: float, final: float) -> float:
    """s_f + (s_i - s_f) (1 - t)^3: most goes while most is superfluous.

    Args:
        along: t, how much of the time of pruning is over; beyond [0, 1] it counts as its end.
        initial, final: s_i and s_f, shares of zeros.
    """
    return final + (initial - final) * (1 - min(max(along, 0.0), 1.0)) ** 3


@implements("gradual_pruning")
class GradualPruning(Ingredient):
    """Close the masks of a model that `Mask` or a like edit gave some, by the cubic schedule.

    What a mask holds stays zero; the schedule begins with what the masks hold already. The
    best weights are chosen among those that were judged with the last masks.

    Args:
        sparsity: share of zeros at the end.
        begin, end: shares of the training between which masks close.
        every: steps between two closings; the last one is at `end`.
        scope: the share of each `layer`, or of all layers together, `global`.

    Raises: FoveateError that names the field, or if no weight has a mask.
    """

    def __init__(
        self,
        sparsity: float = 0.8,
        begin: float = 0.0,
        end: float = 0.75,
        every: int = 100,
        scope: Literal["layer", "global"] = "layer",
    ) -> None:
        demand_share("sparsity", sparsity)
        demand_scope(scope)
        if not 0 <= begin < end <= 1:
            raise FoveateError(f"begin is {begin} and end {end}: give 0 <= begin < end <= 1")
        if every < 1:
            raise FoveateError(f"every is {every}: give 1 or more steps")
        self.sparsity, self.begin, self.end = sparsity, begin, end
        self.every, self.scope = every, scope
        self._initial: Tensor | None = None
        self._closed = False

    def start(self, training: Training) -> None:
        self.weights = masked(training.model)
        if not self.weights:
            raise FoveateError("no weight of the model has a mask: apply Mask to it first")
        if self._initial is None:
            held = [weight.sparsity for weight in self.weights.values()]
            self._initial = torch.tensor(held, dtype=torch.float64)

    def step_end(self, training: Training) -> None:
        if self._is_due(training):
            self._closed = training.clock.progress >= self.end
            self.change(training)
            training.forget_best()

    def change(self, training: Training) -> None:
        """Give the masks the sparsity that is due."""
        self.close(training.clock.progress)

    def close(self, progress: float) -> None:
        """Hold as many weights as the schedule says at this share of the training."""
        assert self._initial is not None
        along = (progress - self.begin) / (self.end - self.begin)
        scores = {name: _score(weight) for name, weight in self.weights.items()}
        sizes = torch.tensor([score.numel() for score in scores.values()], dtype=torch.float64)
        if self.scope == "layer":
            shares = {
                name: self._not_less(cubic_sparsity(along, initial, self.sparsity), [weight])
                for (name, weight), initial in zip(
                    self.weights.items(), self._initial.tolist(), strict=True
                )
            }
            masks = largest(scores, shares)
        else:
            initial = float((self._initial * sizes).sum() / sizes.sum())
            share = cubic_sparsity(along, initial, self.sparsity)
            masks = largest(scores, self._not_less(share, list(self.weights.values())))
        for name, mask in masks.items():
            self.weights[name].set(mask)

    def state(self) -> dict[str, Tensor]:
        if self._initial is None:
            return {}
        return {"initial": self._initial, "closed": torch.tensor(self._closed)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._initial = state["initial"]
        self._closed = bool(state["closed"])

    def _is_due(self, training: Training) -> bool:
        """Whether masks close after this step."""
        clock = training.clock
        if self._closed or clock.progress < self.begin:
            return False
        return clock.progress >= self.end or clock.step % self.every == 0

    def _not_less(self, share: float, weights: list[Weight]) -> float:
        """The share, or what is held already if that is more: masks never open here."""
        held = sum(weight.mask.numel() - int(weight.mask.count_nonzero()) for weight in weights)
        return max(share, held / sum(weight.mask.numel() for weight in weights))


@torch.no_grad()
def _score(weight: Weight) -> Tensor:
    """Magnitudes, and less than any for what is held."""
    return weight.value.abs().masked_fill(~weight.mask, -1.0)
