"""Channels removed and weights rounded without data: what is damaged is put together from the rest.

A channel that goes, or that rounding changes, is written as a linear combination of channels as
they are afterwards. The coefficients follow in closed form from filters and batch norms, and the
layers that read the channels take them in.

Source: udfc (arXiv 2308.07209). Its abstract and a summary were all that could be read of it; the
terms of the loss are LBYL's (arXiv 2502.08474), whose solution has the same form. That readers also
take in the mean that a combination misses is not in either.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import chains
from foveate.surgery.channels.groups import Group
from foveate.surgery.channels.remove import Narrow, evaluating, from_ranges, to_ranges, two
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.imagine import noise_for
from foveate.surgery.quant_whitepaper_qualcomm.bias import clipped_normal_mean
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    Shapes,
    SimulatedLayer,
    cover_simulated,
    demand_simulated,
    shapes_at,
    simulated,
)

NORM_TERM, RIDGE = 0.01, 0.008
"""The paper's two multipliers."""
CLOSE = 1e-9
"""Of outputs in float64, relative to the largest."""


@implements("udfc")
def coefficients(
    wanted: Tensor, given: Tensor, start: Tensor, norm_term: float, ridge: float
) -> Tensor:
    """The combinations of channels that are nearest to others, in closed form.

    For each wanted channel, filter a and bias b with the norm folded in, it makes least

        |a - Σ s_i a_i|² + norm_term (b - Σ s_i b_i)² + ridge size |s - start|²

    over s, where size is the mean |a_i|². The first term is what filters say of the difference, the
    second what norms do, and the third bounds what the activation in between makes of it.

    Args:
        wanted: (channels, weights + 1), the bias last.
        given: (others, weights + 1).
        start: (channels, others), what s is drawn to.
        norm_term, ridge: 0 or more.

    Returns: s, (channels, others), in float64.
    """
    wanted, given, start = wanted.double(), given.double(), start.double()
    weigh = torch.ones_like(given[0])
    weigh[-1] = norm_term
    products = (given * weigh) @ given.T
    products.diagonal().add_(ridge * given[:, :-1].square().sum(1).mean())
    missing = given * weigh @ (wanted - start @ given).T
    return start + torch.linalg.lstsq(products, missing, driver="gelsd").solution.T


# ---------------------------------------------------------------- channels that go


@implements("udfc")
@dataclass(frozen=True, kw_only=True)
class NarrowRestored(Narrow):
    """Remove the same share of channels of every layer, and put them together from the others.

    Channels are those of one plain layer which others read, such as between the convolutions of a
    residual block; those that several layers make, such as a residual's, stay. That what readers
    take in arrives is proved: in float64, with channels that are copies of one, outputs must stay.

    Args:
        norm_term, ridge: as `coefficients` has them; without ridge, combinations are free.
        means: have readers take in, too, what a combination misses of the mean that norms tell of
            a channel behind its ReLU.

    Raises: FoveateError that names the field.
    """

    looks_at = "nothing"

    norm_term: float = NORM_TERM
    ridge: float = RIDGE
    means: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _demand_weights(self.norm_term, self.ridge)

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        x = two(noise_for(model) if data is None else next(self.batches(data)))
        with evaluating(model):
            trial = _Trial(model, x)
        links: dict[str, Plan] = {}
        left: dict[str, str] = {}

        def choose(groups: list[Group]) -> dict[str, list[int]]:
            wanted = {name: gone for name, gone in self.choose(model, groups).items() if gone}
            for group in groups:
                if group.name in wanted:
                    link, why = trial.link(group, wanted[group.name])
                    links[group.name], left[group.name] = link, why
            return {name: gone for name, gone in wanted.items() if not left[name]}

        plan, lines = self.decide_by(model, x, choose)
        done = {line.name for line in lines if line.changed}
        lines = [replace(line, why=left.get(line.name) or line.why) for line in lines]
        plan["restored"] = [links[name] for name in trial.found if name in done]
        return plan, lines

    @torch.no_grad()
    def prepare(self, model: nn.Module, plan: Plan) -> None:
        for link in plan["restored"]:
            gone = torch.tensor(from_ranges(link["gone"]))
            kept = _others(gone, link["channels"])
            rows = _rows(model, link)
            start = torch.zeros(len(gone), len(kept))
            s = coefficients(rows[gone], rows[kept], start, self.norm_term, self.ridge)
            means = _means(model, link) if self.means else None
            for name, norm in link["readers"].items():
                reader: Any = model.get_submodule(name)
                if means is not None:
                    missed = means[gone] - s @ means[kept]
                    _add_constant(model, reader, norm, gone, missed, link["channels"])
                _take_in(reader.weight, s, gone, kept, link["channels"])


class _Trial:
    """A copy of a model in float64, to prove on that readers can make up for channels."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model = copy.deepcopy(model).double()
        self.x = x.double() if x.is_floating_point() else x
        self.found = chains(self.model, self.x)

    def link(self, group: Group, gone: list[int]) -> tuple[Plan, str]:
        """What a plan keeps of channels that go from a group, and why they must stay, or ""."""
        makers = [c for c in self.found.values() if (f"{c.name}.weight", 0) in group.weights]
        if len(makers) != 1:
            return {}, "left, as not one plain layer alone makes its channels"
        maker = makers[0]
        held = [maker.name] if maker.norm is None else [maker.name, maker.norm]
        owned = {name for name, axis in group.weights if axis == 0}
        if other := sorted(name for name in owned if name.rpartition(".")[0] not in held):
            return {}, f"left, as {other[0]} belongs to its channels, too"
        rows = (f"{maker.name}.weight", 0)
        if any(len(slices[rows]) > 1 for slices in group.channels) or _groups(maker.layer) > 1:
            return {}, "left, as its filters do not all see the same"
        readers: dict[str, str | None] = {}
        for name in (name.rpartition(".")[0] for name, axis in group.weights if axis == 1):
            if name not in self.found or _groups(self.found[name].layer) > 1:
                return {}, f"left, as {name}, which reads its channels, is no plain layer"
            if not _reads_in_order(group, (f"{name}.weight", 1)):
                return {}, f"left, as {name} reads others beside its channels"
            readers[name] = self.found[name].norm
        top = None if maker.top is None else str(maker.top)
        link = {"maker": maker.name, "norm": maker.norm, "top": top, "channels": len(group)}
        link |= {"gone": to_ranges(np.array(gone)), "readers": readers}
        return link, self.refutes(link, torch.tensor(gone))

    @torch.no_grad()
    def refutes(self, link: Plan, gone: Tensor) -> str:
        """Why readers cannot make up for channels that are copies of another, or ""."""
        model = copy.deepcopy(self.model)
        kept = _others(gone, link["channels"])
        donor = kept[_rows(model, link)[kept].square().sum(1).argmax()]
        for name in filter(None, (link["maker"], link["norm"])):
            for tensor in model.get_submodule(name).state_dict().values():
                if tensor.ndim:
                    tensor[gone] = tensor[donor].clone()
        wanted = model(self.x)
        s = (kept == donor).double().expand(len(gone), -1)
        for name in link["readers"]:
            reader: Any = model.get_submodule(name)
            _take_in(reader.weight, s, gone, kept, link["channels"])
        worst = (model(self.x) - wanted).abs().max() / wanted.abs().max()
        return "" if worst < CLOSE else "left, as its readers could not make up for its channels"


def _reads_in_order(group: Group, columns: tuple[str, int]) -> bool:
    """Whether what a weight has for the channels is theirs alone, one after the other."""
    found = np.concatenate([slices[columns] for slices in group.channels])
    sizes = {len(slices[columns]) for slices in group.channels}
    return len(sizes) == 1 and np.array_equal(found, np.arange(len(found)))


def _groups(layer: Any) -> int:
    return getattr(layer, "groups", 1)


def _others(gone: Tensor, channels: int) -> Tensor:
    stays = torch.ones(channels, dtype=torch.bool)
    stays[gone] = False
    return stays.nonzero().flatten()


def _rows(model: nn.Module, link: Plan) -> Tensor:
    """Filters of a layer and their biases with its norm folded in, (channels, weights + 1)."""
    layer: Any = model.get_submodule(link["maker"])
    weight = layer.weight.detach().double().flatten(1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach().double()
    if link["norm"] is not None:
        norm: Any = model.get_submodule(link["norm"])
        factor = (norm.running_var.double() + norm.eps).rsqrt()
        shift = -norm.running_mean.double() * factor
        if norm.weight is not None:
            factor, shift = factor * norm.weight, shift * norm.weight + norm.bias
        weight, bias = weight * factor[:, None], bias * factor + shift
    return torch.cat((weight, bias[:, None]), 1).cpu()


def _means(model: nn.Module, link: Plan) -> Tensor | None:
    """What a layer's norm says of the mean of its channels behind the ReLU; None without both."""
    norm: Any = link["norm"] and model.get_submodule(link["norm"])
    if norm is None or norm.weight is None or link["top"] is None:
        return None
    shift, scale = norm.bias.double().cpu(), norm.weight.abs().double().cpu()
    return clipped_normal_mean(shift, scale, float(link["top"]))


def _by_channel(weight: Tensor, channels: int) -> Tensor:
    """(outputs, channels, weights of a channel), which share the weight's memory."""
    return weight.detach().view(len(weight), channels, -1)


def _take_in(weight: Tensor, s: Tensor, gone: Tensor, kept: Tensor, channels: int) -> None:
    """Have a reader's weight take from kept channels what it took from those that go."""
    parts = _by_channel(weight, channels)
    parts[:, kept] += torch.einsum("gk,ogw->okw", s.to(parts), parts[:, gone])
    parts[:, gone] = 0


def _add_constant(
    model: nn.Module, reader: Any, norm: str | None, gone: Tensor, missed: Tensor, channels: int
) -> None:
    """Have a reader's bias, or the norm behind it, take in what channels miss of their means."""
    constant = _by_channel(reader.weight, channels)[:, gone].sum(2) @ missed.to(reader.weight)
    if reader.bias is not None:
        reader.bias.add_(constant)
    elif norm is not None:
        behind: Any = model.get_submodule(norm)
        behind.running_mean.sub_(constant)


# ---------------------------------------------------------------- channels that rounding changes


@implements("udfc")
@dataclass(frozen=True, kw_only=True)
class RestoreRounded(Edit):
    """Have each layer of a simulated model make up for the rounding of the filters before it.

    Layers are taken in their order, and what a layer takes in is rounded with its weight.

    Args:
        norm_term, ridge: as `coefficients` has them; the ridge draws every channel to itself.

    Raises: FoveateError that names the field.
    """

    looks_at = "nothing"

    norm_term: float = NORM_TERM
    ridge: float = RIDGE

    def __post_init__(self) -> None:
        _demand_weights(self.norm_term, self.ridge)

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        x = noise_for(model) if data is None else next(self.batches(data))
        names = demand_simulated(self, model, x)
        shapes, layers = shapes_at(model, x), simulated(model)
        return cover_simulated(
            model,
            names,
            lambda name, layer: _unrestorable(name, layer, names, shapes, layers),
            lambda layer: f"makes up for the rounding of {layer.source}",
        )

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return model

    @torch.no_grad()
    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        layers = simulated(model)
        for name in plan["layers"]:
            layer = layers[name]
            before = layers[layer.source or ""]
            wanted, given = (
                torch.cat((weight.flatten(1), before.bias[:, None]), 1).cpu()
                for weight in (before.weight, before.rounded_weight())
            )
            s = coefficients(wanted, given, torch.eye(len(given)), self.norm_term, self.ridge)
            parts = layer.weight.detach().flatten(2) if layer.weight.ndim > 2 else layer.weight
            mixed = torch.einsum("gk,og...->ok...", s.to(parts), parts).view_as(layer.weight)
            _scale_range(layer, mixed)
            layer.weight.copy_(mixed)


def _unrestorable(
    name: str,
    layer: SimulatedLayer,
    names: list[str],
    shapes: Shapes,
    layers: dict[str, SimulatedLayer],
) -> str:
    """Why a layer cannot make up for the one before it, or ""."""
    if name not in names or (layer.source is not None and layer.source not in names):
        return "left because the model does not call it, or the layer before it, once"
    if layer.source is None:
        return "left because its input is no layer's output alone"
    if shapes[name][0][1] != shapes[layer.source][1][1]:
        return f"left because the outputs of {layer.source} are moved before they come"
    if any(part.geometry.get("groups", 1) > 1 for part in (layer, layers[layer.source])):
        return "left because it, or the layer before it, has groups"
    return ""


def _scale_range(layer: SimulatedLayer, weight: Tensor) -> None:
    """Let the range of a layer's weights grow and shrink as the largest of them does."""
    grid = layer.weight_grid
    old, new = (
        w.detach().abs().reshape(len(grid.high), -1).amax(1) for w in (layer.weight, weight)
    )
    ratio = torch.where(old > 0, new / old.clamp(min=1e-30), 1.0)
    for end in filter(lambda end: end is not None, (grid.low, grid.high)):
        end.mul_(ratio)  # pyright: ignore[reportOptionalMemberAccess]


def _demand_weights(norm_term: float, ridge: float) -> None:
    for name, value in (("norm_term", norm_term), ("ridge", ridge)):
        if value < 0:
            raise FoveateError(f"{name} is {value:g}: give 0 or more")
