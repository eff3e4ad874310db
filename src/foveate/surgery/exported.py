"""Quantised layers in operations that runtimes know: numbers go onto grids, and codes become
weights, around a plain convolution or product.

A module that computes on grids says how in a method `exported() -> ExportedLayer`; what `deploy`
writes is made of that, with grids, codes and rounding as the edit decided them.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from foveate.surgery.layers import cut_off, product

NAMESPACE = "foveate"
"""Of the two operations below, which graphs keep as they are."""
CODES = ".weight.codes"
"""How the state dict's name of an exported layer's codes ends; the rest is the layer's."""


@torch.library.custom_op(f"{NAMESPACE}::on_grid", mutates_args=())
def on_grid(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    """The nearest numbers of a grid from `low` to `high`, any shape to the same."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero.int(), low, high)


@on_grid.register_fake
def _(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(f"{NAMESPACE}::from_codes", mutates_args=())
def from_codes(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """scale (codes - zero), with one of each for every row, or for all if they have no axis."""
    if scale.ndim:
        scale, zero = (part.view(-1, *[1] * (codes.ndim - 1)) for part in (scale, zero))
    return (codes.to(scale.dtype) - zero) * scale


@from_codes.register_fake
def _(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.empty_like(codes, dtype=scale.dtype)


class OnGrid(nn.Module):
    """Rounds to a grid.

    Args:
        scale, zero: of no dimension.
        low, high: the first and the last integer, in uint8 or in int8.

    Shapes: any, to the same.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.ends = low, high
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero", zero.detach().to(torch.uint8 if low >= 0 else torch.int8))

    def cuts_off(self, top: float) -> bool:
        """Whether nothing of the grid is below 0 or above `top`."""
        lowest, highest = ((end - int(self.zero)) * float(self.scale) for end in self.ends)
        return lowest >= 0 and highest <= top * (1 + 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.foveate.on_grid(x, self.scale, self.zero, *self.ends)


class Codes(nn.Module):
    """A weight as integers and what they stand for. Where they fit, they are signed, around a
    zero of 0, which is what runtimes multiply fastest.

    Args:
        codes: integers, (rows, ...).
        scale, zero: (rows,), or (1,) for all; a code q stands for scale (q - zero).
        shape: of the weight: the rows, or so many of them in succession for each output.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    def __init__(self, codes: Tensor, scale: Tensor, zero: Tensor, shape: torch.Size) -> None:
        super().__init__()
        codes, zero = codes.detach().int(), zero.detach().flatten().int()
        around_zero = codes - zero.view(-1, *[1] * (codes.ndim - 1))
        few = _fit(around_zero, -8, 7)
        signed = few or (_fit(around_zero, -128, 127) and not _fit(codes, 0, 15))
        if signed:
            codes, zero = around_zero, torch.zeros_like(zero)
        kind = torch.int8 if signed else torch.uint8
        self.shape = shape
        self.register_buffer("codes", codes.to(kind))
        for name, part in (("scale", scale.detach().flatten().float()), ("zero", zero.to(kind))):
            self.register_buffer(name, (part[0] if len(part) == 1 else part).clone())

    def forward(self) -> Tensor:
        """The weight."""
        weight = torch.ops.foveate.from_codes(self.codes, self.scale, self.zero)
        if weight.shape == self.shape:
            return weight
        rows = weight.reshape(self.shape[0], -1)
        return rows[:, : self.shape[1:].numel()].reshape(self.shape)


class ExportedLayer(nn.Module):
    """A convolution or linear layer on grids.

    Args:
        weight, bias: codes, and (outputs,) or None.
        geometry: of `geometry_of` the layer.
        top: where the ReLU behind it cuts off, or None if there is none.
        input, output: the grids, or None where numbers stay as they are.

    Shapes: as the layer's.
    """

    weights_as = "integers"

    def __init__(
        self,
        weight: Codes,
        bias: Tensor | None,
        geometry: dict[str, Any],
        top: float | None = None,
        input: OnGrid | None = None,
        output: OnGrid | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.geometry = weight, geometry
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.input, self.output = input, output
        if top is not None and output is not None and output.cuts_off(top):
            top = None
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        if self.input is not None:
            x = self.input(x)
        y = cut_off(product(x, self.weight(), self.bias, self.geometry), self.top)
        return y if self.output is None else self.output(y)


def exportable(model: nn.Module) -> nn.Module:
    """A copy of a model whose quantised layers are `ExportedLayer`s; others stay as they are.

    A layer that takes what another one put on a grid, moved at most, says so in an attribute
    `source`, and takes over that grid.
    """
    model = copy.deepcopy(model).eval()
    layers = {name: model.get_submodule(name) for name in exported_layers(model)}
    made: dict[str, ExportedLayer] = {
        name: layer.exported().eval()  # pyright: ignore
        for name, layer in layers.items()
    }
    for name, layer in layers.items():
        source = _source(name, getattr(layer, "source", None), made)
        if made[name].input is None and source is not None:
            made[name].input = copy.deepcopy(made[source].output)
        model.set_submodule(name, made[name])
    return model


def exported_layers(model: nn.Module) -> list[str]:
    """Names of the layers that `exportable` changes; not of those within such."""
    found: list[str] = []
    for name, module in model.named_modules():
        if hasattr(module, "exported") and not (found and name.startswith(f"{found[-1]}.")):
            found.append(name)
    return found


def is_exported(network: nn.Module) -> bool:
    """Whether a network or graph holds operations on grids."""
    if isinstance(network, fx.GraphModule):
        return any(is_on_grids(node) for node in network.graph.nodes)
    return any(isinstance(module, ExportedLayer) for module in network.modules())


def is_on_grids(node: fx.Node) -> bool:
    """Whether a node calls one of the operations on grids."""
    return getattr(node.target, "namespace", "") == NAMESPACE


def _source(name: str, source: str | None, made: dict[str, ExportedLayer]) -> str | None:
    """The full name of a source, which was named when the layer's model was part of none yet."""
    if source is None:
        return None
    owners = name.split(".")
    whole = (".".join([*owners[:i], source]) for i in range(len(owners)))
    return next((other for other in whole if other in made), None)


def _fit(codes: Tensor, low: int, high: int) -> bool:
    return bool((codes >= low).all() and (codes <= high).all())
