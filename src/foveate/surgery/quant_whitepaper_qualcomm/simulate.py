"""A model that computes as integers would, in floating point, and keeps what it was beside.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, sections 2, 3.1 and 4).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import Chain, chains, cover, link_of
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.exported import Codes, ExportedLayer
from foveate.surgery.integers import REFUSED, Grid
from foveate.surgery.layers import cut_off, geometry_of, product
from foveate.surgery.quant_whitepaper_qualcomm.folding import expected, fold_norm
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser
from foveate.surgery.quant_whitepaper_qualcomm.ranges import (
    OF_ACTIVATIONS,
    OF_LOGITS,
    OF_WEIGHTS,
    Sample,
    Setter,
    norm_range,
    set_range,
)

CONCATENATIONS = {"cat", "concat", "concatenate"}
"""Functions that runtimes compute in integers where what they take is on grids."""

Switch = Callable[[Quantiser], bool]
"""Which quantisers round."""

Shapes = dict[str, tuple[torch.Size, torch.Size]]
"""Of what layers take and make, by name."""


@implements("quant_whitepaper_qualcomm")
@dataclass(frozen=True, kw_only=True)
class Simulate(Edit):
    """Round weights and activations of every convolution and linear layer to grids.

    Batch norms and ReLUs that follow a layer are folded into it. A layer rounds its weight,
    its output, and its input unless that lies on a grid already. Layers that no image reaches,
    such as those of positions, stay: programs have them as constants. Trained on, the edited model
    learns weights and ranges together (LSQ-like), with any recipe.

    Args:
        weight_bits: 2 to 8; at most 7 for programs that run on x86 processors without VNNI,
            whose sums of 8-bit products overflow.
        activation_bits: 2 to 8, or None to leave activations as they are.
        weight_range, activation_range: how ranges are set, as `ranges.set_range` says; or "norm",
            for outputs of layers whose norms tell it, and "minmax" for other activations.
        logits_range: the same for the output of the last layer; None as other activations.
        percentile: for setters of that name.
        per_channel: a range for each output channel's weights, or one a layer.
        symmetric: weights' grids have zero in their middle. Activations' never have.
        every_output: round all outputs, and not only those that a layer or a concatenation takes.
            ONNX Runtime computes the layers before GELU, sums and the like in integers only then;
            OpenVINO does in any case, and without it answers are nearer and programs faster.
        skip: names of layers to leave as they are, or patterns of them.

    Raises: FoveateError that names the field, or the layer of `skip` that is not there.
    """

    weight_bits: int = 8
    activation_bits: int | None = 8
    weight_range: Setter = "mse"
    activation_range: Setter = "mse"
    logits_range: Setter | None = None
    percentile: float = 99.99
    per_channel: bool = True
    symmetric: bool = True
    every_output: bool = True
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits"):
            bits = getattr(self, field)
            if bits not in range(2, 9) and (bits is not None or field == "weight_bits"):
                raise FoveateError(f"{field} is {bits}: give 2 to 8")
        for field, allowed in (
            ("weight_range", OF_WEIGHTS),
            ("activation_range", OF_ACTIVATIONS),
            ("logits_range", (*OF_LOGITS, None)),
        ):
            if getattr(self, field) not in allowed:
                names = ", ".join(filter(None, allowed))
                raise FoveateError(f"{field} is {getattr(self, field)!r}: give one of {names}")
        if not 50 < self.percentile <= 100:
            raise FoveateError(f"percentile is {self.percentile}: give more than 50, at most 100")

    refuses = REFUSED

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        found = chains(model, next(self.batches(data)))
        coverage = [
            replace(line, changed=False, why="left because no image changes what it makes")
            if line.changed and found[line.name].constant
            else line
            for line in cover(model, found, self.skip, self._told)
        ]
        wanted = {line.name for line in coverage if line.changed}
        chosen = [chain for chain in found.values() if chain.name in wanted]
        sources = {chain.source for chain in chosen}
        links = [
            {
                **link_of(chain),
                "last": chain.last,
                "maker": chain.maker,
                "taken": chain.name in sources or not CONCATENATIONS.isdisjoint(chain.takers),
            }
            for chain in chosen
        ]
        return {"layers": links}, coverage

    def _told(self, chain: Chain) -> str:
        bits = "activations as they are"
        if self.activation_bits is not None:
            bits = f"{self.activation_bits}-bit activations"
        folded = f", with {chain.norm} folded in" if chain.norm else ""
        return f"{self.weight_bits}-bit weights, {bits}{folded}"

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        done: set[str] = set()
        for link in plan["layers"]:
            layer = fold_norm(model, link["name"], link["norm"])
            source = link["source"] if link["source"] in done else None
            top = None if link["top"] is None else float(link["top"])
            simulated = SimulatedLayer(layer, top, source, self).train(layer.training)
            if not (self.every_output or link["taken"]):
                simulated.output_grid = None
            model.set_submodule(link["name"], simulated)
            done.add(link["name"])
        return model

    def fit(self, model: nn.Module, plan: Plan, data: Images) -> None:
        if self.activation_bits is not None:
            self._set_activations(model, plan, data)
        for link in plan["layers"]:
            layer: Any = model.get_submodule(link["name"])
            self._set(layer.weight_grid, layer.weight_rows(), self.weight_range)

    def _set_activations(self, model: nn.Module, plan: Plan, data: Images) -> None:
        """Let the model's data pass, with nothing rounded, and look at it."""
        samples: dict[Quantiser, Sample] = {}
        setters: dict[Quantiser, Setter] = {}
        for link in plan["layers"]:
            layer: Any = model.get_submodule(link["name"])
            for grid in filter(None, (layer.input_grid, layer.output_grid)):
                is_output, how = grid is layer.output_grid, self.activation_range
                if how == "norm":
                    how, known = "minmax", expected(layer) if is_output else None
                    if known is not None:
                        grid.set_range(*norm_range(*known, layer.top))
                        continue
                if link["last"] and is_output:
                    how = self.logits_range or how
                samples[grid], setters[grid] = Sample(rows=how == "cross_entropy"), how
        fill(model, samples, self.batches(data))
        for grid, sample in samples.items():
            self._set(grid, sample.values(), setters[grid])

    def _set(self, grid: Quantiser, values: Tensor, how: Setter) -> None:
        low, high = set_range(values, grid.bits, grid.symmetric, how, self.percentile)
        grid.set_range(low.view_as(grid.high), high.view_as(grid.high))


@implements("quant_whitepaper_qualcomm")
class SimulatedLayer(nn.Module):
    """A convolution or linear layer and its ReLU, with quantisers around and in it.

    Args:
        layer: an nn.Conv2d or nn.Linear, with a bias.
        top: where the ReLU behind it cuts off, or None if there is none.
        source: name of the layer whose output, moved at most, is the input, or None.
        how: bits and ranges.

    Attributes:
        weight, bias: what is rounded and used; edits may change them.
        plain_weight, plain_bias: those of the layer as it was, for comparison.

    Shapes: as the layer's.
    """

    weights_as = "integers"

    plain_weight: Tensor
    plain_bias: Tensor

    def __init__(self, layer: Any, top: float | None, source: str | None, how: Simulate) -> None:
        super().__init__()
        self.geometry, self.top, self.source = geometry_of(layer), top, source
        self.weight, self.bias = layer.weight, layer.bias
        for name in ("weight", "bias"):
            self.register_buffer(f"plain_{name}", getattr(layer, name).detach().clone())
        for name, values in zip(("mean", "deviation"), expected(layer) or (), strict=False):
            self.register_buffer(f"expected_{name}", values)
        channels = len(layer.weight) if how.per_channel else 1
        self.weight_grid = Quantiser(how.weight_bits, how.symmetric, channels)
        self.input_grid = self.output_grid = None
        if how.activation_bits is not None:
            self.output_grid = Quantiser(how.activation_bits, False)
            self.input_grid = None if source else Quantiser(how.activation_bits, False)

    def forward(self, x: Tensor) -> Tensor:
        y = cut_off(self._sums(x), self.top)
        return y if self.output_grid is None else self.output_grid(y)

    def channel_sums(self, x: Tensor) -> Tensor:
        """Outputs before the ReLU and the output's grid, (channels, ...), image after image."""
        y = self._sums(x)
        return y.transpose(0, 1).flatten(1) if self.weight.ndim == 4 else y.flatten(0, -2).T

    def _sums(self, x: Tensor) -> Tensor:
        """Outputs before the ReLU and the output's grid."""
        if self.input_grid is not None:
            x = self.input_grid(x)
        return product(x, *self.weight_and_bias(), self.geometry)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """What is multiplied and added: the layer's as it was while its weights' grid is off."""
        if not self.weight_grid.on:
            return self.plain_weight, self.plain_bias
        return self.rounded_weight(), self.bias

    def weight_rows(self) -> Tensor:
        """The weight in a row for each range of its grid."""
        return self.weight.flatten(1).view(len(self.weight_grid.high), -1)

    def rounded_weight(self) -> Tensor:
        """The weight on its grid."""
        if len(self.weight_grid.high) == len(self.weight):
            return self.weight_grid(self.weight)
        return self.weight_grid(self.weight[None])[0]

    def codes(self) -> tuple[Tensor, Grid, int]:
        """The integers of the weight, their grid, and the lowest there may be."""
        grid, lowest, _ = self.weight_grid.grid()
        weight = self.weight.detach()
        if len(grid[0]) == len(weight):
            return self.weight_grid.integers(weight), grid, lowest
        return self.weight_grid.integers(weight[None])[0], grid, lowest

    def exported(self) -> ExportedLayer:
        """The layer as runtimes know it."""
        codes, grid, _ = self.codes()
        grids = [g and g.fixed().points() for g in (self.input_grid, self.output_grid)]
        weight = Codes(codes, *grid, codes.shape)
        return ExportedLayer(weight, self.bias, self.geometry, self.top, *grids)


def simulated(model: nn.Module) -> dict[str, SimulatedLayer]:
    """The simulated layers of a model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SimulatedLayer)}


@contextmanager
def switched(model: nn.Module, on: Switch) -> Iterator[None]:
    """While this lasts, the model is in evaluation mode, and only some of its quantisers round.

    Args:
        on: which. With none of them, the model computes what the one it came from did.
    """
    modes = [(module, module.training) for module in model.modules()]
    grids = [module for module in model.modules() if isinstance(module, Quantiser)]
    states = [grid.on for grid in grids]
    model.eval()
    try:
        for grid in grids:
            grid.on = on(grid)
        yield
    finally:
        for grid, state in zip(grids, states, strict=True):
            grid.on = state
        for module, training in modes:
            module.training = training


def none(grid: Quantiser) -> bool:
    """For `switched`: the model as it was."""
    return False


def all_of_them(grid: Quantiser) -> bool:
    """For `switched`: the model as it is."""
    return True


@torch.no_grad()
def fill(model: nn.Module, samples: dict[Quantiser, Sample], batches: Iterable[Tensor]) -> None:
    """Have samples of what some quantisers take, while batches pass and nothing is rounded."""
    handles = []
    for grid, sample in samples.items():

        def look(_: nn.Module, args: tuple[Tensor, ...], sample: Sample = sample) -> None:
            sample.add(args[0])

        handles.append(grid.register_forward_pre_hook(look))
    try:
        with switched(model, none):
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def watch(model: nn.Module, x: Tensor, look: Callable[[str, Tensor, Tensor], None]) -> None:
    """Have every call of a simulated layer told while an input passes and nothing is rounded.

    Args:
        look: given the layer's name, what it takes and what it makes.
    """
    handles = []
    for name, layer in simulated(model).items():

        def hook(_: nn.Module, args: Any, out: Tensor, name: str = name) -> None:
            look(name, args[0], out)

        handles.append(layer.register_forward_hook(hook))
    try:
        with switched(model, none):
            model(x)
    finally:
        for handle in handles:
            handle.remove()


def cover_called_once(
    edit: Edit, model: nn.Module, x: Tensor, done: str
) -> tuple[Plan, list[Covered]]:
    """The plan and coverage of an edit of all simulated layers that a model calls once.

    Raises: FoveateError if there is none.
    """
    names = demand_simulated(edit, model, x)
    left = "left because the model does not call it once"
    return cover_simulated(
        model, names, lambda name, layer: "" if name in names else left, lambda layer: done
    )


def cover_simulated(
    model: nn.Module,
    names: list[str],
    why: Callable[[str, SimulatedLayer], str],
    done: Callable[[SimulatedLayer], str],
) -> tuple[Plan, list[Covered]]:
    """The plan and coverage of an edit of simulated layers.

    Args:
        names: of `demand_simulated`, whose order the plan keeps.
        why: says why a layer is left, or "".
        done: says what is done to it.
    """
    coverage = []
    for name, layer in simulated(model).items():
        left = why(name, layer)
        coverage.append(Covered(name, "SimulatedLayer", not left, left or done(layer)))
    changed = {line.name for line in coverage if line.changed}
    return {"layers": [name for name in names if name in changed]}, coverage


def shapes_at(model: nn.Module, x: Tensor) -> Shapes:
    """Of what each simulated layer takes and makes, in its last call."""
    found: Shapes = {}
    watch(model, x, lambda name, taken, made: found.update({name: (taken.shape, made.shape)}))
    return found


def demand_simulated(edit: Edit, model: nn.Module, x: Tensor) -> list[str]:
    """The names of the simulated layers that a model calls once, in the order of the calls.

    Raises: FoveateError if there is none.
    """
    order: list[str] = []
    watch(model, x, lambda name, *_: order.append(name))
    if not order:
        raise FoveateError(
            f"{type(edit).__name__} works on layers that Simulate has made: apply it first"
        )
    return [name for name in order if order.count(name) == 1]
