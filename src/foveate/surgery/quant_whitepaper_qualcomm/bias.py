"""Bias correction: the mean that rounding adds to a layer's outputs, taken away again.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, section 3.3).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import product
from foveate.surgery.quant_whitepaper_qualcomm.folding import expected
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Shapes,
    SimulatedLayer,
    Switch,
    all_of_them,
    cover_simulated,
    demand_simulated,
    none,
    shapes_at,
    simulated,
    switched,
)


@implements("quant_whitepaper_qualcomm")
@dataclass(frozen=True, kw_only=True)
class CorrectBias(Edit):
    """Change biases of a simulated model so that its layers' outputs have the means they had.

    Args:
        how: "empirical" measures means on images, layer by layer, behind layers that are
            corrected already: what every earlier error adds is taken away, too. "analytic"
            computes what the error of a layer's weights adds from the distribution that the norm
            of the layer before says its outputs have; images show which layer comes before only.

    Raises: FoveateError if `how` is neither.
    """

    how: Literal["empirical", "analytic"] = "empirical"

    def __post_init__(self) -> None:
        if self.how not in ("empirical", "analytic"):
            raise FoveateError(f"how is {self.how!r}: give empirical or analytic")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        x = next(self.batches(data))
        names = demand_simulated(self, model, x)
        shapes, layers = shapes_at(model, x), simulated(model)

        def why(name: str, layer: SimulatedLayer) -> str:
            if name not in names:
                return "left because the model does not call it once"
            return _unknown(name, layer, layers, shapes) if self.how == "analytic" else ""

        return cover_simulated(model, names, why, lambda layer: f"its bias corrected ({self.how})")

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return model

    @torch.no_grad()
    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        layers = simulated(model)
        for name in plan["layers"]:
            layer = layers[name]
            if self.how == "empirical":
                now, before = (self._mean(model, layer, data, on) for on in (all_of_them, none))
                layer.bias.add_((before - now).to(layer.bias.dtype))
            else:
                error = layer.rounded_weight() - layer.plain_weight
                layer.bias.sub_(_through(error, _mean_behind(layers[layer.source or ""]), layer))

    def _mean(self, model: nn.Module, layer: SimulatedLayer, data: Images, on: Switch) -> Tensor:
        """Of each of a layer's outputs before its ReLU, in float64."""
        total, count = torch.zeros(len(layer.bias), dtype=torch.float64), 0

        def look(layer: Any, args: tuple[Tensor, ...]) -> None:
            nonlocal total, count
            x = args[0] if layer.input_grid is None else layer.input_grid(args[0])
            weight, bias = layer.weight_and_bias()
            y = product(x, weight, bias, layer.geometry)
            y = y.transpose(0, 1).flatten(1) if layer.weight.ndim == 4 else y.flatten(0, -2).T
            total, count = total + y.double().sum(1).cpu(), count + y.shape[1]

        handle = layer.register_forward_pre_hook(look)
        try:
            with switched(model, on):
                for batch in self.batches(data):
                    model(batch)
        finally:
            handle.remove()
        return (total / count).to(layer.bias.device)


def clipped_normal_mean(mean: Tensor, deviation: Tensor, top: float) -> Tensor:
    """The mean of a normal variable that is cut off at zero and at `top`, which may be inf."""
    normal = torch.distributions.Normal(mean.new_zeros(()), mean.new_ones(()))
    safe = deviation.clamp(min=1e-12)
    a = -mean / safe
    b = (top - mean) / safe
    between = mean * (normal.cdf(b) - normal.cdf(a)) + safe * (_density(a) - _density(b))
    above = 0 if top == float("inf") else top * (1 - normal.cdf(b))
    return between + above


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / (2 * torch.pi) ** 0.5


def _mean_behind(source: SimulatedLayer) -> Tensor:
    """What a norm says of the mean of a layer's outputs behind its ReLU."""
    known = expected(source)
    assert known is not None
    return known[0] if source.top is None else clipped_normal_mean(*known, source.top)


def _through(weight: Tensor, means: Tensor, layer: SimulatedLayer) -> Tensor:
    """What a layer without bias makes of channels that are their means everywhere."""
    if weight.ndim == 2:
        return weight @ means
    x = means.view(1, -1, 1, 1).expand(-1, -1, *weight.shape[2:])
    return product(x, weight, None, {"groups": layer.geometry["groups"]}).flatten()


def _unknown(
    name: str, layer: SimulatedLayer, layers: dict[str, SimulatedLayer], shapes: Shapes
) -> str:
    """Why the mean of a layer's input cannot be said without images, or ""."""
    if layer.source is None:
        return "left because its input is no layer's output alone"
    if expected(layers[layer.source]) is None:
        return f"left because no norm told how the outputs of {layer.source} are distributed"
    if shapes[name][0] != shapes[layer.source][1]:
        return f"left because the outputs of {layer.source} are pooled or moved before they come"
    return ""
