"""AdaRound: for each weight, up or down, as the layer's outputs ask for.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, section 3.4), and Nagel et al. 2020
(arXiv 2004.10568, sections 3.2 and 3.3), which it comes from.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.quant_whitepaper_qualcomm.inputs import Inputs, inputs_of, outputs_at
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    SimulatedLayer,
    cover_called_once,
    simulated,
)

STRETCH = (-0.1, 1.1)
"""What the sigmoid is stretched to before it is cut off at 0 and 1, so that it gets there."""
BETA = (20.0, 2.0)
"""From which exponent to which the regulariser is annealed: rounding is free first."""

SoftError = Callable[[Tensor, Tensor], Tensor]


@implements("quant_whitepaper_qualcomm")
@dataclass(frozen=True, kw_only=True)
class AdaRound(Edit):
    """Round each weight of a simulated model up or down so that its layer's outputs stay nearest.

    Layers are rounded one after the other. Each is given what the layers before it make of the
    images now that these are rounded, and is to give what it gave before any was. Where nearest
    rounding serves better after all, it stays. Weights come to lie on their grids.

    Args:
        steps: of Adam for each layer.
        rate: of learning.
        batch: places of the maps in a step.
        places: of an image that are looked at, at most.
        strength: of the regulariser that drives each weight to a side, where 1 weighs its mean
            over the weights as much as the error of nearest rounding. (The paper weighs its sum
            with 0.01 and the error as it is, whatever the size of the outputs.)
        seed: of the places and batches.

    Raises: FoveateError that names the field.
    """

    steps: int = 1000
    rate: float = 1e-2
    batch: int = 1024
    places: int = 16
    strength: float = 30.0
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("steps", "rate", "batch", "places", "strength"):
            if getattr(self, field) <= 0:
                raise FoveateError(f"{field} is {getattr(self, field)}: give more than 0")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        return cover_called_once(
            self, model, next(self.batches(data)), "rounded as its outputs ask for"
        )

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return model

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        for name in plan["layers"]:
            layer = simulated(model)[name]
            found = inputs_of(model, layer, self.batches(data), self.places, self.seed)
            round_layer(layer, found, self)


def round_layer(layer: SimulatedLayer, inputs: Inputs, how: AdaRound) -> None:
    """Put a layer's weight on its grid, up or down by what it makes of inputs; in place."""
    (scale, zero), lowest, highest = layer.weight_grid.grid()
    scale, zero = (part.view(-1, *[1] * (layer.weight.ndim - 1)) for part in (scale, zero))
    weight, bias = layer.weight.detach(), layer.bias.detach()
    down = (weight / scale).floor()
    rest = (weight / scale - down).clamp(0, 1)
    wanted = outputs_at(layer, inputs.plain, layer.plain_weight, layer.plain_bias)

    def on_grid(up: Tensor) -> Tensor:
        return ((down + up + zero).clamp(lowest, highest) - zero) * scale

    def error(weight: Tensor, some: Tensor | slice = slice(None)) -> Tensor:
        got = outputs_at(layer, inputs.rounded[:, some], weight, bias)
        return (got - wanted[:, some]).square().sum((0, 2)).mean()

    unit = error(on_grid(rest.round())).clamp(min=1e-30)

    def soft_error(up: Tensor, some: Tensor) -> Tensor:
        return error(on_grid(up), some) / unit

    up = _learn(rest, soft_error, inputs.rounded.shape[1], how)
    with torch.no_grad():
        candidates = [on_grid(up), on_grid(rest.round())]
        errors = [error(candidate).item() for candidate in candidates]
        layer.weight.copy_(candidates[errors.index(min(errors))])


@torch.enable_grad()
def _learn(rest: Tensor, error: SoftError, places: int, how: AdaRound) -> Tensor:
    """Which weights to round up, as ones and zeros.

    Args:
        rest: how far each weight lies above the grid's point below it, in steps.
        error: what weights rounded up by shares in [0, 1] do to the outputs at some places.
        places: how many there are.
    """
    low, high = STRETCH
    logit = ((rest - low) / (high - low)).logit().requires_grad_()
    optimizer = torch.optim.Adam([logit], lr=how.rate)
    generator = torch.Generator().manual_seed(how.seed)
    warm = how.steps // 5
    for step in range(how.steps):
        some = torch.randint(places, (min(how.batch, places),), generator=generator)
        up = (logit.sigmoid() * (high - low) + low).clamp(0, 1)
        loss = error(up, some.to(rest.device))
        if step >= warm:
            progress = (step - warm) / (how.steps - warm)
            beta = BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1 + math.cos(progress * math.pi))
            loss = loss + how.strength * (1 - (2 * up - 1).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (logit.detach() >= 0).to(rest.dtype)
