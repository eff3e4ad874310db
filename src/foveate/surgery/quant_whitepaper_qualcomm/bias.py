"""Bias correction: the mean that rounding adds to a layer's outputs, taken away again.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, section 3.3).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import product
from foveate.surgery.quant_whitepaper_qualcomm.folding import expected
from foveate.surgery.quant_whitepaper_qualcomm.inputs import reaching
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Shapes,
    SimulatedLayer,
    all_of_them,
    cover_simulated,
    demand_simulated,
    shapes_at,
    simulated,
    switched,
    watch,
)

MOST_BYTES = 2**30
"""Of the largest maps of all images: with more than that, they do not pass the model together."""


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
        if self.how == "empirical":
            _correct_measured(model, plan["layers"], _as_one(model, list(self.batches(data))))
            return
        layers = simulated(model)
        for name in plan["layers"]:
            layer = layers[name]
            error = layer.rounded_weight() - layer.plain_weight
            layer.bias.sub_(_through(error, _mean_behind(layers[layer.source or ""]), layer))


def _as_one(model: nn.Module, batches: list[Tensor]) -> list[Tensor]:
    """One batch of all images, unless they differ in size or make maps that are too large."""
    if len(batches) == 1 or len({batch.shape[1:] for batch in batches}) > 1:
        return batches
    largest = max(shape.numel() for pair in shapes_at(model, batches[0]).values() for shape in pair)
    images = sum(len(batch) for batch in batches)
    if 4 * largest / len(batches[0]) * images > MOST_BYTES:
        return batches
    return [torch.cat(batches)]


def _correct_measured(model: nn.Module, names: list[str], batches: list[Tensor]) -> None:
    """Give the outputs of layers, in the order of their calls, the means they had on batches.

    One batch passes once, as a layer can be corrected just before it is called; several must all
    reach a layer before those behind it get to see it corrected, and pass once for each.
    """
    layers = simulated(model)
    before = {layer: _OutputMean(layer) for layer in layers.values()}
    for batch in batches:
        watch(model, batch, lambda name, taken, _: before[layers[name]].add(taken))

    def correct(layer: SimulatedLayer, inputs: Iterable[Tensor]) -> None:
        now = _OutputMean(layer)
        for x in inputs:
            now.add(x)
        layer.bias.add_(before[layer].less(now))

    wanted = [layers[name] for name in names]
    with switched(model, all_of_them):
        if len(batches) > 1:
            for layer in wanted:
                correct(layer, (reaching(model, layer, batch) for batch in batches))
            return
        hooks = [layer.register_forward_pre_hook(correct) for layer in wanted]
        try:
            model(batches[0])
        finally:
            for hook in hooks:
                hook.remove()


class _OutputMean:
    """The mean of each of a layer's outputs before its ReLU, as its weights are while it looks.

    Args:
        layer: whose.
    """

    def __init__(self, layer: SimulatedLayer) -> None:
        self._layer = layer
        self._total, self._count = torch.zeros(len(layer.bias), dtype=torch.float64), 0

    def add(self, x: Tensor) -> None:
        """Look at what the layer makes of a batch."""
        layer = self._layer
        x = x if layer.input_grid is None else layer.input_grid(x)
        y = product(x, *layer.weight_and_bias(), layer.geometry)
        y = y.transpose(0, 1).flatten(1) if layer.weight.ndim == 4 else y.flatten(0, -2).T
        self._total += y.double().sum(1).cpu()
        self._count += y.shape[1]

    def less(self, other: "_OutputMean") -> Tensor:
        """By how much it is above another, as the layer's bias is held."""
        return (self._total / self._count - other._total / other._count).to(self._layer.bias)


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
