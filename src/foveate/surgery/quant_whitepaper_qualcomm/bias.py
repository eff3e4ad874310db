"""Bias correction: the mean that rounding adds to a layer's outputs, taken away again.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, section 3.3). The paper measures before ReLUs
and takes all that it measures for true; here that is one way of several. Shrinkage: W. James and
C. Stein, "Estimation with Quadratic Loss", 1961.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import cut_off, product
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
SOME = 4096
"""Values of each channel that tell how the mean behind a ReLU follows the bias."""


@implements("quant_whitepaper_qualcomm")
@dataclass(frozen=True, kw_only=True)
class CorrectBias(Edit):
    """Change biases of a simulated model so that its layers' outputs have the means they had.

    Args:
        how: "behind" measures means on images, layer by layer, behind layers that are corrected
            already: what every earlier error adds is taken away, too. Means are those of what
            comes next, so behind a ReLU that the layer has. "empirical", the paper's, measures
            before it. "analytic" computes what the error of a layer's weights adds from the
            distribution that the norm of the layer before says its outputs have; images show
            which layer comes before only.
        shrink: correct measured means by less, the more of what they differ by is chance, as far
            as images that differ among each other tell (James and Stein). Few images, or layers
            that see one place of each, would add more error than they take away.

    Raises: FoveateError if `how` is none of these.
    """

    how: Literal["behind", "empirical", "analytic"] = "behind"
    shrink: bool = True

    def __post_init__(self) -> None:
        if self.how not in ("behind", "empirical", "analytic"):
            raise FoveateError(f"how is {self.how!r}: give behind, empirical or analytic")

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
        if self.how != "analytic":
            batches = _as_one(model, list(self.batches(data)))
            _correct_measured(model, plan["layers"], batches, self)
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


def _correct_measured(
    model: nn.Module, names: list[str], batches: list[Tensor], edit: CorrectBias
) -> None:
    """Give the outputs of layers, in the order of their calls, the means they had on batches.

    One batch passes once, as a layer can be corrected just before it is called; several must all
    reach a layer before those behind it get to see it corrected, and pass once for each.
    """
    layers = simulated(model)
    tops = {layer: layer.top if edit.how == "behind" else None for layer in layers.values()}
    before = {layer: _Means() for layer in layers.values()}
    for batch in batches:

        def look(name: str, x: Tensor, _: Tensor, images: int = len(batch)) -> None:
            layer = layers[name]
            before[layer].add(cut_off(layer.channel_sums(x), tops[layer]), images)

        watch(model, batch, look)

    def correct(layer: SimulatedLayer, inputs: Iterable[Tensor]) -> None:
        top, now, some = tops[layer], _Means(), []
        for batch, x in zip(batches, inputs, strict=True):
            sums = layer.channel_sums(x)
            now.add(cut_off(sums, top), len(batch))
            if top is not None:
                some.append(_some(sums, max(1, SOME // len(batches))))
        missing = before[layer].less(now, edit.shrink)
        if top is not None:
            missing = _shift(torch.cat(some, 1), missing, top)
        layer.bias.add_(missing.to(layer.bias))

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


def _some(values: Tensor, count: int) -> Tensor:
    """At most so many of the values of each channel, drawn with a seed, float64."""
    if values.shape[1] > count:
        chance = torch.Generator().manual_seed(0)
        values = values[:, torch.randint(values.shape[1], (count,), generator=chance)]
    return values.double().cpu()


class _Means:
    """The means of each channel, image by image."""

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, values: Tensor, images: int) -> None:
        """Look at the values (channels, ...) of so many images."""
        values = values.unflatten(1, (images if values.shape[1] % images == 0 else 1, -1))
        self._means.append(values.double().mean(2).cpu())
        self._counts.append(torch.full(values.shape[1:2], values.shape[2], dtype=torch.float64))

    def less(self, other: "_Means", shrink: bool) -> Tensor:
        """By how much they are above others."""
        above = torch.cat(self._means, 1) - torch.cat(other._means, 1)
        counts = torch.cat(self._counts)
        mean = above @ counts / counts.sum()
        if shrink and len(counts) > 1:
            chance = above.var(1).sum() / len(counts)
            mean *= (1 - chance / mean.square().sum().clamp(min=1e-30)).clamp(min=0)
        return mean


def _shift(values: Tensor, missing: Tensor, top: float) -> Tensor:
    """What must be added to values (channels, ...) for their means behind a ReLU to rise so much.

    Args:
        values: before the ReLU.
        missing: by how much the mean of each channel is to rise, or to fall where negative.
        top: where the ReLU cuts off.
    """
    wanted = (cut_off(values, top).mean(1) + missing).clamp(0, top)
    low = torch.where(missing < 0, -values.amax(1), 0.0).clamp(max=0)
    most = wanted - values.mean(1) if top == float("inf") else top - values.amin(1)
    high = torch.where(missing > 0, most, 0.0).clamp(min=0)
    for _ in range(40):
        middle = (low + high) / 2
        enough = cut_off(values + middle[:, None], top).mean(1) >= wanted
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high


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
