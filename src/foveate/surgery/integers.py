"""Integer arithmetic for networks: affine grids, fixed-point multipliers, and rounding shifts.

A number x stands as the integer q in x = scale (q - zero). Zero is always on
the grid, so that padding is exact.

Source: quant_whitepaper (arXiv 1806.08342, section 2), and Jacob et al. 2018
(arXiv 1712.05877, section 2) for what integers are multiplied with.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.surgery.exported import Codes, ExportedLayer, OnGrid
from foveate.surgery.layers import on_channels, product

Grid = tuple[Tensor, Tensor]
"""Scales (float32) and zero points (int32), of no dimension or one for each channel."""

REFUSED = {
    "integers": "they are quantised already",
    "mixtures": "fold them into plain layers first",
    "chosen filters": "quantise the model without the heads",
    "constants": "quantise first, and capture the graph then",
}
"""Ways of holding weights that quantising can't start from, each with why."""


def affine_grid(low: Tensor, high: Tensor, bits: int) -> Grid:
    """The grid of 2^bits points from 0 that covers a range, which is widened to hold zero."""
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    top = 2**bits - 1
    scale = (high - low) / top
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (-low / scale).round().clamp(0, top).int()


def symmetric_grid(weight: Tensor, bits: int, per_channel: bool) -> Grid:
    """The grid from -(2^(bits-1) - 1) to its opposite that covers weights; its zero is 0.

    Args:
        weight: (outputs, ...).
        per_channel: a scale for each output, or the same for all.

    Shapes: scales and zero points (outputs,).
    """
    size = weight.detach().float().flatten(1).abs().amax(1)
    if not per_channel:
        size = size.amax().expand_as(size)
    scale = size / (2 ** (bits - 1) - 1)
    scale = torch.where(scale > 0, scale, 1.0).contiguous()
    return scale, torch.zeros_like(scale, dtype=torch.int32)


def quantise(x: Tensor, grid: Grid, low: int, high: int) -> Tensor:
    """The nearest points of a grid from `low` to `high`: int32, ties to even.

    Args:
        x: (C, ...) where the grid has a scale for each channel.
    """
    scale, zero = (part.view(-1, *[1] * (x.ndim - 1)) if part.ndim else part for part in grid)
    return ((x * (1 / scale)).round() + zero).clamp(low, high).int()


def fake_quantise(x: Tensor, grid: Grid, low: int, high: int) -> Tensor:
    """The numbers that those points stand for; gradients pass as if nothing had happened, and
    not at all where the range cut x off."""
    scale, zero = grid
    if scale.ndim:
        return torch.fake_quantize_per_channel_affine(x, scale, zero, 0, low, high)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, low, high)


def _teach_shapes() -> None:
    """Tell torch.export what its own rounding gives, which it needs where the batch may vary."""

    def shaped(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)

    for name in (
        "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
        "aten::fake_quantize_per_channel_affine_cachemask",
    ):
        if not torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta"):
            torch.library.impl(name, "Meta", shaped)


_teach_shapes()


def fixed_point(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Positive factors as multiplier 2^-shift, with int32 multipliers in [2^30, 2^31)."""
    mantissa, exponent = torch.frexp(factor.double())
    multiplier = (mantissa * 2**31).round().long()
    rounded_up = multiplier == 2**31
    multiplier = torch.where(rounded_up, 2**30, multiplier)
    return multiplier.int(), (31 - exponent - rounded_up.int()).int()


def multiply(x: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """Round x multiplier 2^-shift once, halves up, as TFLite does where it rounds once.

    Args:
        x: int32.
        multiplier, shift: of `fixed_point`, which x is broadcast with.
    """
    shift = shift.long().clamp(1, 62)
    return (x.long() * multiplier.long() + (1 << (shift - 1))) >> shift


def multiply_twice_rounded(x: Tensor, multiplier: Tensor, shift: Tensor) -> Tensor:
    """The same as gemmlowp computes it: the upper half of the doubled product, and then a shift,
    each rounded to nearest, the second with halves away from zero."""
    left, right = (31 - shift.long()).clamp(min=0), (shift.long() - 31).clamp(0, 31)
    product = (x.long() << left) * multiplier.long()
    nudge = torch.where(product >= 0, 1 << 30, 1 - (1 << 30))
    upper = torch.div(product + nudge, 1 << 31, rounding_mode="trunc")
    mask = (1 << right) - 1
    threshold = (mask >> 1) + (upper < 0)
    return (upper >> right) + ((upper & mask) > threshold)


class Range(nn.Module):
    """The range of an activation, and the grid of 8 bits or fewer over it.

    Args:
        bits: of the grid.
        decay: of the moving averages, or None for the extremes.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, bits: int, decay: float | None) -> None:
        super().__init__()
        self.decay, self.bits, self.top = decay, bits, 2**bits - 1
        for name in ("low", "high", "seen"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Look at a batch of the activation."""
        low, high = (part.to(self.low.dtype) for part in torch.aminmax(x))
        if self.decay is None:
            self.low.copy_(torch.minimum(low, self.low))
            self.high.copy_(torch.maximum(high, self.high))
        else:
            share = 1 - torch.clamp(self.seen / (self.seen + 1), max=self.decay)
            self.low.lerp_(low, share)
            self.high.lerp_(high, share)
        self.seen += 1

    def grid(self) -> Grid:
        """Scale and zero point as they are now."""
        return affine_grid(self.low, self.high, self.bits)

    def fake(self, x: Tensor) -> Tensor:
        """x on the grid, with straight-through gradients."""
        return fake_quantise(x, self.grid(), 0, self.top)


@dataclass(frozen=True)
class Grids:
    """The grids of a layer's input, weight and output, and the bits of the activations."""

    input: Grid
    weight: Grid
    output: Grid
    bits: int


class IntegerLayer(nn.Module):
    """A convolution or linear layer on integers: int8 weights, int32 sums and bias, and a
    multiplier and a shift that bring the sums to the output's grid. A ReLU is where that begins.

    Args:
        geometry: of `geometry_of` the layer.
        weight: on its grid, int32.
        bias: float (outputs,).
        grids: on which all of it lies.
        gemmlowp: requantise with `multiply_twice_rounded`.

    Shapes: as the layer's, in floats that lie on the grids.
    """

    weights_as = "integers"

    weight: Tensor
    bias: Tensor
    multiplier: Tensor
    shift: Tensor
    input_scale: Tensor
    input_zero: Tensor
    output_scale: Tensor
    output_zero: Tensor

    def __init__(
        self,
        geometry: dict[str, Any],
        weight: Tensor,
        bias: Tensor,
        grids: Grids,
        gemmlowp: bool = False,
    ) -> None:
        super().__init__()
        steps = grids.input[0].double() * grids.weight[0].double()
        most = 2**31 - 1
        multiplier, shift = fixed_point(steps / grids.output[0].double())
        buffers = {
            "weight": weight.to(torch.int8),
            "bias": (bias.double() / steps).round().clamp(-most, most).int(),
            "multiplier": multiplier,
            "shift": shift.to(torch.int8),
            "input_scale": grids.input[0],
            "input_zero": grids.input[1],
            "output_scale": grids.output[0],
            "output_zero": grids.output[1],
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.detach().clone())
        self.top = 2**grids.bits - 1
        self.geometry, self.gemmlowp = geometry, gemmlowp
        largest = weight.detach().abs().flatten(1).sum(1).max().item() * self.top
        self._float32_is_exact = largest < 2**24

    def forward(self, x: Tensor) -> Tensor:
        q = self.run(quantise(x, (self.input_scale, self.input_zero), 0, self.top))
        return ((q - self.output_zero) * self.output_scale).to(x.dtype)

    def run(self, q: Tensor) -> Tensor:
        """Integers of the input's grid to integers of the output's."""
        sums = self.sums(q)
        bring = multiply_twice_rounded if self.gemmlowp else multiply
        multiplier, shift = (self._on_channels(part) for part in (self.multiplier, self.shift))
        return (bring(sums, multiplier, shift) + self.output_zero).clamp(0, self.top).int()

    def sums(self, q: Tensor) -> Tensor:
        """The int32 sums of products, with the bias. Floats hold these integers exactly."""
        exact = self._float32_is_exact and q.device.type == "cpu"
        dtype = torch.float32 if exact else torch.float64
        with torch.autocast(q.device.type, enabled=False):
            x = (q - self.input_zero).to(dtype)
            sums = product(x, self.weight.to(dtype), None, self.geometry)
        return sums.int() + self._on_channels(self.bias)

    def exported(self) -> ExportedLayer:
        """The layer as runtimes know it, which round halves to even where this rounds them up."""
        factor = self.multiplier.double() * torch.exp2(-self.shift.double())
        scale = factor * self.output_scale / self.input_scale
        weight = Codes(self.weight, scale, torch.zeros_like(scale), self.weight.shape)
        bias = (self.bias * scale * self.input_scale).float()
        taken = OnGrid(self.input_scale, self.input_zero, 0, self.top)
        given = OnGrid(self.output_scale, self.output_zero, 0, self.top)
        return ExportedLayer(weight, bias, self.geometry, None, taken, given)

    def _on_channels(self, values: Tensor) -> Tensor:
        return on_channels(values, self.weight)
