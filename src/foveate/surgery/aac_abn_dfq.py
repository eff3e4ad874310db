"""Activations' ranges and norms' statistics without data, from images that a network asks for.

Source: aac_abn_dfq (arXiv 2204.04215, sections 3.2 and 3.3). Its abstract and a reader's notes were
all that could be read of it. How large logits are to get, how long images are made and how far
norms adapt is therefore chosen here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.imagine import Imagine, noise_for
from foveate.surgery.quant_whitepaper_qualcomm.folding import expected
from foveate.surgery.quant_whitepaper_qualcomm.ranges import Setter
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Simulate,
    SimulatedLayer,
    all_of_them,
    demand_simulated,
    none,
    simulated,
    switched,
)

EPS = 1e-5
"""Kept away from zero as batch norms do it: relative to the variance that a channel had."""


# ---------------------------------------------------------------- ranges


@implements("aac_abn_dfq")
@dataclass(frozen=True, kw_only=True)
class SimulateUnseen(Imagine, Simulate):
    """As `Simulate`, with activations cut off where those of images of its own are largest.

    Args:
        activation_range, and others: as `Simulate` and `Imagine` have them.

    Raises: FoveateError that names the field.
    """

    looks_at = "nothing"

    activation_range: Setter = "minmax"

    def __post_init__(self) -> None:
        Imagine.__post_init__(self)
        Simulate.__post_init__(self)

    def apply(self, model: nn.Module, data: Images = None) -> tuple[nn.Module, list[Covered]]:
        self.demand_weights(model)
        return super().apply(model, data if self.kind == "given" else _own(self, model, data))


def _own(edit: Any, model: nn.Module, data: Images) -> list[Tensor]:
    like = None if data is None else next(edit.batches(data))
    return edit.images(model, like)


# ---------------------------------------------------------------- norms


@implements("aac_abn_dfq")
@dataclass(frozen=True, kw_only=True)
class AdaptNorms(Imagine, Edit):
    """Let the norms of a simulated model learn the statistics of what it has become.

    What happens is what batch norms do in training mode, which `Simulate` has folded away: a layer
    computes with the statistics of each batch, and its own move towards them. They end up in its
    weights' scales and its bias; weights keep their integers, and activations their ranges.

    Args:
        change: learn only what rounding changes about the statistics of images, which are not those
            of data unless images match these; False is the paper's way.
        momentum: share of the way that statistics go with a batch.
        rounds: over all images.
        kind, and others: as `Imagine` has them; images are made by the model as it was before it
            was rounded.

    Raises: FoveateError that names the field.
    """

    looks_at = "nothing"

    change: bool = True
    momentum: float = 0.1
    rounds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.momentum <= 1:
            raise FoveateError(f"momentum is {self.momentum:g}: give more than 0, at most 1")
        if self.rounds < 1:
            raise FoveateError(f"rounds is {self.rounds}: give 1 or more")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        x = noise_for(model) if data is None else next(self.batches(data))
        names = demand_simulated(self, model, x)
        coverage = []
        for name, layer in simulated(model).items():
            why = "" if name in names else "left because the model does not call it once"
            if not why and expected(layer) is None:
                why = "left because it had no norm"
            if not why and len(layer.weight_grid.high) != len(layer.weight):
                why = "left because one grid for all its weights cannot follow scales of channels"
            done = why or "its statistics adapted"
            coverage.append(Covered(name, "SimulatedLayer", not why, done))
        return {"layers": [line.name for line in coverage if line.changed]}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return model

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        with switched(model, none):
            images = list(self.batches(data)) if self.kind == "given" else _own(self, model, data)
        layers = simulated(model)
        norms = [_Unfolded(layers[name], self.momentum) for name in plan["layers"]]
        handles = [norm.layer.register_forward_pre_hook(norm.see) for norm in norms]
        try:
            with torch.no_grad():
                for batch in images * self.rounds:
                    for on in (none, all_of_them) if self.change else (all_of_them,):
                        with switched(model, on):
                            model(batch)
        finally:
            for handle in handles:
                handle.remove()
        for norm in norms:
            norm.normalise_by(norm.mean, norm.variance)


class _Unfolded:
    """The batch norm that was folded into a simulated layer, taken out of it again.

    The layer's outputs as they were folded are γ (z - mean) / deviation + β of the convolution's z.
    They have the mean β and the deviation |γ| where z has what the norm knows, so a norm of these
    outputs, with β and γ² for its first statistics, is the norm of z.

    What rounding does to the mean and deviation of images, it does to those that the norm knows: so
    only the change counts, if the same images passed before while nothing was rounded.

    Args:
        layer: with what a norm told of its outputs.
        momentum: as batch norms have it.
    """

    def __init__(self, layer: SimulatedLayer, momentum: float) -> None:
        known = expected(layer)
        assert known is not None
        self.layer, self.momentum = layer, momentum
        self.shift, self.scale = known
        self.mean, self.variance = self.shift.clone(), self.scale.square()
        self.plain: tuple[Tensor, Tensor] | None = None
        self._folded = layer.weight.detach().clone(), layer.bias.detach().clone()
        grid = layer.weight_grid
        self._ends = [
            (end, end.detach().clone()) for end in (grid.low, grid.high) if end is not None
        ]

    def see(self, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Before a batch comes: take its statistics, go towards them, and normalise by them.

        While nothing is rounded, remember them: what follows is measured against them.
        """
        if not self.layer.weight_grid.on:
            self.plain, _ = self._statistics(args[0])
            return
        self.normalise_by(self.shift, self.scale.square())
        (mean, variance), count = self._statistics(args[0])
        if self.plain is not None:
            ratio = variance / self.plain[1].clamp(min=1e-30)
            mean = mean + ratio.sqrt() * (self.shift - self.plain[0])
            variance = ratio * self.scale.square()
        self.mean.lerp_(mean, self.momentum)
        self.variance.lerp_(variance, self.momentum)
        self.normalise_by(mean, variance * (1 - 1 / count))

    def _statistics(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], int]:
        """Means and unbiased variances of the layer's outputs, and of how many they are."""
        found = self.layer.channel_sums(x)
        return (found.mean(1), found.var(1)), found.shape[1]

    @torch.no_grad()
    def normalise_by(self, mean: Tensor, variance: Tensor) -> None:
        """Give the layer the weights and bias that these statistics make."""
        weight, bias = self._folded
        own = self.scale.square()
        factor = torch.where(own > 0, (own * (1 + EPS) / (variance + EPS * own)).sqrt(), 1.0)
        self.layer.weight.copy_(weight * factor.view(-1, *[1] * (weight.ndim - 1)))
        for end, before in self._ends:
            end.copy_(before * factor)
        self.layer.bias.copy_((bias - mean) * factor + self.shift)
