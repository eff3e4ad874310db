"""Pruning at once, without tuning: what goes leaves its mean behind.

Source: recoverable_pruning (Pruning On-the-Fly: A Recoverable Pruning Method without Fine-tuning,
2022). Best after a training with `foveate.train.recoverable_pruning.Polarise`; filling with
zeros is `MaskSmallest`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.gradual_pruning import demand_share, largest
from foveate.surgery.layers import matches
from foveate.surgery.masks import masked, weights


@implements("recoverable_pruning")
@dataclass(frozen=True, kw_only=True)
class FillWithMean(Edit):
    """Give the smallest weights of every layer, in each filter, one value: their mean.

    A filter is then its large weights, where they stand, and one number. No mask is set:
    this is made when training is over.

    Args:
        sparsity: share of each layer's weights that are small.
        skip: patterns of layers' names to leave.

    Raises: FoveateError if sparsity is no share below 1, or a weight has a mask.
    """

    looks_at = "nothing"
    refuses: ClassVar[dict[str, str]] = {
        "constants": "it has no layers any more; fill first, and capture the graph then",
        "mixtures": "they are shared; fold them into plain layers first",
    }

    sparsity: float = 0.5
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        demand_share("sparsity", self.sparsity)

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        if held := list(masked(model)):
            raise FoveateError(f"{held[0]} has a mask, which holds zeros: fill where there is none")
        lines, names = [], []
        for name, weight in weights(model).items():
            layer, kind = name.rpartition(".")[0], type(weight.module).__name__
            skipped = matches(layer, self.skip)
            done = f"{self.sparsity:.0%} of its weights became their filter's mean of them"
            why = "left because skip names it" if skipped else done
            lines.append(Covered(layer, kind, not skipped, why))
            names += [] if skipped else [name]
        return {"weights": names}, lines

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return model

    @torch.no_grad()
    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        for name in plan["weights"]:
            weight = model.get_parameter(name)
            weight.copy_(filled(weight, self.sparsity))


@implements("recoverable_pruning")
def filled(weight: Tensor, sparsity: float) -> Tensor:
    """A weight (outputs, ...) whose smallest are, in each output's filter, the mean of those."""
    small = ~largest({"": weight.abs()}, {"": sparsity})[""].flatten(1)
    flat = weight.flatten(1)
    mean = (flat * small).sum(1, keepdim=True) / small.sum(1, keepdim=True).clamp_min(1)
    return torch.where(small, mean, flat).view(weight.shape)
