"""Which quantiser costs what: the flow that finds the guilty layer.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, section 3.7, figure 8).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Switch,
    all_of_them,
    none,
    switched,
)

Score = Callable[[nn.Module], float]
"""Of a model, the more the better: an accuracy, or decibels."""


@dataclass(frozen=True)
class Suspect:
    """A quantiser, and what it costs.

    Attributes:
        name: of its layer.
        part: "weight", "input" or "output".
        alone: the score with this one on and no other.
        spared: the score with all others on and not this one.
    """

    name: str
    part: str
    alone: float
    spared: float


@dataclass(frozen=True)
class Verdict:
    """What `blame` found.

    Attributes:
        plain: the score with nothing rounded.
        rounded: with all.
        weights, activations: with weights only, and with activations only.
        suspects: every quantiser, the guiltiest first: that with the least score alone.
    """

    plain: float
    rounded: float
    weights: float
    activations: float
    suspects: list[Suspect]

    @property
    def kind(self) -> str:
        """Whether "weights" or "activations" cost more."""
        return "weights" if self.weights < self.activations else "activations"

    def table(self) -> Table:
        """The suspects, and before them the sums, to be printed with rich."""
        table = Table("quantisers", "on alone", "off alone")
        for name in ("plain", "rounded", "weights", "activations"):
            table.add_row(
                {"plain": "none", "rounded": "all"}.get(name, name), _cell(self, name), ""
            )
        for suspect in self.suspects:
            row = (_cell(suspect, "alone"), _cell(suspect, "spared"))
            table.add_row(f"{suspect.name} {suspect.part}", *row)
        return table


def _cell(what: Any, name: str) -> str:
    return f"{getattr(what, name):.2f}"


@implements("quant_whitepaper_qualcomm")
def blame(model: nn.Module, score: Score) -> Verdict:
    """Switch the quantisers of a simulated model on and off, and score what is left.

    Args:
        model: of `Simulate`; afterwards as it was.
        score: of a model that computes with some of its quantisers, such as `decibels` makes.

    Raises: FoveateError if the model has no quantiser.
    """
    parts = {m: name for name, m in model.named_modules() if isinstance(m, Quantiser)}
    if not parts:
        raise FoveateError("no layer of the model is simulated: apply Simulate to it first")

    def scored(on: Switch) -> float:
        with switched(model, on), torch.no_grad():
            return score(model)

    suspects = []
    for grid, path in parts.items():
        name, _, part = path.rpartition(".")
        alone = scored(lambda other, grid=grid: other is grid)
        spared = scored(lambda other, grid=grid: other is not grid)
        suspects.append(Suspect(name, part.removesuffix("_grid"), alone, spared))

    def is_of_weight(grid: Quantiser) -> bool:
        return parts[grid].endswith("weight_grid")

    return Verdict(
        plain=scored(none),
        rounded=scored(all_of_them),
        weights=scored(is_of_weight),
        activations=scored(lambda grid: not is_of_weight(grid)),
        suspects=sorted(suspects, key=lambda suspect: suspect.alone),
    )


def decibels(model: nn.Module, images: Tensor) -> Score:
    """A score that needs no labels: how far a simulated model's outputs lie above the noise that
    rounding adds to them, 10 log10(signal / noise), at most 200."""
    with switched(model, none), torch.no_grad():
        wanted = model(images)

    def score(model: nn.Module) -> float:
        noise = (model(images) - wanted).double().square().sum()
        share = wanted.double().square().sum() / noise.clamp(min=1e-300)
        return min(200.0, 10 * share.log10().item())

    return score
