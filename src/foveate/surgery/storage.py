"""Weights stored in few bits, and made into numbers again whenever they are used.

Codes of 4 bits or fewer lie two in a byte in the state dict. Source: quant_whitepaper_qualcomm
(arXiv 2106.08295, section 2.2) for the grids; groups with scales of their own divide the
weights of an output, as is usual where weights alone are quantised.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.exported import Codes, ExportedLayer
from foveate.surgery.layers import cut_off, exchange, geometry_of, matches, obstacle, product
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser
from foveate.surgery.quant_whitepaper_qualcomm.simulate import SimulatedLayer, simulated


@dataclass(frozen=True, kw_only=True)
class Store(Edit):
    """Store the weights of convolutions and linear layers in few bits.

    Each group of an output's weights has its own affine grid over its extremes. Layers that
    `Simulate` has made are stored on the grids that they have, with all that was done to them
    since, such as by `AdaRound`; activations' grids stay as they are now. Of 8 symmetric
    bits that makes a model which OpenVINO, given its torch.export program, runs in integers.
    Layers that `Simulate` has left stay as they are, unless one stores once more.

    Args:
        bits: 2 to 8; layers of `Simulate` have theirs.
        group: weights that share a scale, or None for all of an output's.
        skip: names of layers to leave as they are, or patterns of them.

    Raises: FoveateError that names the field.
    """

    bits: int = 4
    group: int | None = 64
    skip: tuple[str, ...] = ()

    looks_at = "nothing"
    refuses: ClassVar[dict[str, str]] = {
        "mixtures": "fold them into plain layers first",
        "chosen filters": "store the model without the heads",
        "constants": "store first, and capture the graph then",
    }

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise FoveateError(f"bits is {self.bits}: give 2 to 8")
        if self.group is not None and self.group < 1:
            raise FoveateError(f"group is {self.group}: give 1 or more, or None")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        coverage, layers_have_grids = [], bool(simulated(model))
        for name, module in model.named_modules():
            if not isinstance(module, nn.Conv2d | nn.Linear | SimulatedLayer):
                continue
            if isinstance(module, SimulatedLayer):
                bits = module.weight_grid.bits
                why = "left because skip names it" if matches(name, self.skip) else ""
            elif layers_have_grids:
                bits, why = self.bits, "left because it has no grid, and others have"
            else:
                bits, why = self.bits, obstacle(name, module, self.skip)
            done = why or f"stored in {bits} bits a weight"
            coverage.append(Covered(name, type(module).__name__, not why, done))
        layers = [line.name for line in coverage if line.changed]
        return {"layers": layers, "grids": _grids_of_products(model)}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        exchange(model, plan["layers"], lambda layer: StoredLayer(layer, self.bits, self.group))
        return exchange(model, plan.get("grids", ()), lambda grid: grid.fixed())


class StoredLayer(nn.Module):
    """A convolution or linear layer whose weight is a `StoredWeight`.

    Args:
        layer: an nn.Conv2d, nn.Linear or `SimulatedLayer`.
        bits, group: of the weight, where no grid is given with the layer.

    Shapes: as the layer's.
    """

    weights_as = "integers"

    def __init__(self, layer: Any, bits: int, group: int | None) -> None:
        super().__init__()
        self.top = self.source = self.input_grid = self.output_grid = None
        if isinstance(layer, SimulatedLayer):
            grid = layer.weight_grid
            kind = Int8Weight if grid.symmetric and grid.bits > 4 else StoredWeight
            self.weight = kind.on_grid_of(layer)
            self.geometry, self.top, self.source = layer.geometry, layer.top, layer.source
            self.input_grid, self.output_grid = (
                grid and grid.fixed() for grid in (layer.input_grid, layer.output_grid)
            )
        else:
            self.weight = StoredWeight.of(layer.weight.detach(), bits, group)
            self.geometry = geometry_of(layer)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        if self.input_grid is not None:
            x = self.input_grid(x)
        y = cut_off(product(x, self.weight(x.dtype), self.bias, self.geometry), self.top)
        return y if self.output_grid is None else self.output_grid(y)

    def exported(self) -> ExportedLayer:
        """The layer as runtimes know it."""
        grids = [grid and grid.points() for grid in (self.input_grid, self.output_grid)]
        return ExportedLayer(self.weight.exact(), self.bias, self.geometry, self.top, *grids)


class _Weight(nn.Module):
    """A weight made anew at each use, and what networks ask of one without using it."""

    scale: Tensor
    dtype = torch.float32

    @property
    def device(self) -> torch.device:
        """Where the weight is made."""
        return self.scale.device


class StoredWeight(_Weight):
    """Codes and the grids that they lie on: scale (code - zero).

    Args:
        codes: (outputs, groups, weights of a group), integers from 0 to 2^bits - 1.
        scale, zero: (outputs, groups).
        shape: of the weight; groups may have more places than it needs.
        bits: of a code.
    """

    codes: Tensor
    zero: Tensor

    def __init__(
        self, codes: Tensor, scale: Tensor, zero: Tensor, shape: torch.Size, bits: int
    ) -> None:
        super().__init__()
        self.shape, self.bits, self.spread = shape, bits, codes.shape
        codes = codes.to(torch.uint8)
        self.register_buffer("codes", pack(codes) if bits <= 4 else codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero.to(torch.uint8))

    @classmethod
    def of(cls, weight: Tensor, bits: int, group: int | None) -> "StoredWeight":
        """A weight on grids over the extremes of its groups, with scales in bfloat16."""
        rows = weight.flatten(1)
        group = min(group or rows.shape[1], rows.shape[1])
        rows = nn.functional.pad(rows, (0, -rows.shape[1] % group)).unflatten(1, (-1, group))
        low, high = rows.amin(2).clamp(max=0), rows.amax(2).clamp(min=0)
        top = 2**bits - 1
        scale = ((high - low).float() / top).bfloat16()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        zero = (-low / scale).round().clamp(0, top)
        codes = ((rows / scale[..., None]).round() + zero[..., None]).clamp(0, top)
        return cls(codes, scale, zero, weight.shape, bits)

    @classmethod
    def on_grid_of(cls, layer: SimulatedLayer) -> "StoredWeight":
        """The weight that a simulated layer computes with, exactly."""
        codes, (scale, zero), lowest = layer.codes()
        scale, zero = (part.expand(len(codes))[:, None].contiguous() for part in (scale, zero))
        bits = layer.weight_grid.bits
        return cls(codes.flatten(1)[:, None] - lowest, scale, zero - lowest, codes.shape, bits)

    def forward(self, dtype: torch.dtype = _Weight.dtype) -> Tensor:
        """The weight, of its shape."""
        steps = self._unpacked().to(torch.int16) - self.zero[..., None]
        weight = steps.to(dtype) * self.scale[..., None].to(dtype)
        return weight.flatten(1)[:, : self.shape[1:].numel()].view(self.shape)

    def exact(self) -> Codes:
        """The same numbers as runtimes know them."""
        codes = self._unpacked()
        codes = codes.view(self.shape) if codes.shape[1] == 1 else codes.flatten(0, 1)
        return Codes(codes, self.scale, self.zero, self.shape)

    def _unpacked(self) -> Tensor:
        """The codes, (outputs, groups, weights of a group)."""
        if self.bits > 4:
            return self.codes
        return unpack(self.codes, self.spread.numel()).view(self.spread)


class Int8Weight(_Weight):
    """A weight as int8 times the scale of its output, which is how runtimes with integer
    arithmetic want to find one.

    Args:
        codes: of the weight's shape.
        scale: (outputs,), or (1,).
    """

    codes: Tensor

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes.to(torch.int8))
        self.register_buffer("scale", scale.view(-1, *[1] * (codes.ndim - 1)))

    @classmethod
    def on_grid_of(cls, layer: SimulatedLayer) -> "Int8Weight":
        """The weight that a simulated layer with a symmetric grid computes with, exactly."""
        codes, (scale, _), _ = layer.codes()
        return cls(codes, scale)

    def forward(self, dtype: torch.dtype = _Weight.dtype) -> Tensor:
        """The weight, of its shape."""
        return self.codes.to(dtype) * self.scale.to(dtype)

    def exact(self) -> Codes:
        """The same numbers as runtimes know them."""
        return Codes(self.codes, self.scale, torch.zeros_like(self.scale), self.codes.shape)


def _grids_of_products(model: nn.Module) -> list[str]:
    """Quantisers that belong to no layer, but to products of activations."""
    layers = [name for name, m in model.named_modules() if isinstance(m, SimulatedLayer)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, Quantiser) and name.rpartition(".")[0] not in layers
    ]


def pack(codes: Tensor) -> Tensor:
    """Codes of 4 bits, uint8, two in a byte, the first in the lower half: (n) to (ceil(n / 2))."""
    codes = nn.functional.pad(codes.flatten(), (0, codes.numel() % 2))
    return codes[::2] | codes[1::2] << 4


def unpack(packed: Tensor, count: int) -> Tensor:
    """The opposite of `pack`, for as many codes as there were."""
    return torch.stack((packed & 15, packed >> 4), 1).flatten()[:count]
