"""A quantiser that computes in floating point, and whose range can be learnt.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, sections 2.2 and 4.1); the gradients of
ranges are scaled as in LSQ (arXiv 1902.08153, section 2.2).
"""

import math

import torch
from torch import Tensor, nn

from foveate.surgery.exported import OnGrid
from foveate.surgery.integers import Grid, affine_grid, fake_quantise, quantise


def grid_over(low: Tensor, high: Tensor, bits: int, symmetric: bool) -> tuple[Grid, int, int]:
    """The grid over a range, its lowest integer and its highest.

    Args:
        low, high: of no dimension or (channels,).
        symmetric: integers from -(2^(bits-1) - 1) to its opposite, and a zero point of 0.
            Otherwise they begin at 0, and the range is widened to hold zero.
    """
    if not symmetric:
        return affine_grid(low, high, bits), 0, 2**bits - 1
    top = 2 ** (bits - 1) - 1
    scale = torch.maximum(-low, high).float() / top
    scale = torch.where(scale > 0, scale, 1.0)
    return (scale, torch.zeros_like(scale, dtype=torch.int32)), -top, top


class Quantiser(nn.Module):
    """Rounds to a grid over a range. In training, gradients pass straight through the rounding to
    what lies in the range, and those of the range say where it should end.

    Args:
        bits: 2 to 8.
        symmetric: whether zero is the grid's middle.
        channels: a range for each entry of the first axis, or one for all if None.

    Attributes:
        high, low: the range, learnable; a symmetric grid has no `low` of its own.
        on: whether it rounds at all.

    Shapes: (channels, ...) or any, to the same.
    """

    def __init__(self, bits: int, symmetric: bool, channels: int | None = None) -> None:
        super().__init__()
        self.bits, self.symmetric, self.on = bits, symmetric, True
        shape = () if channels is None else (channels,)
        self.high = nn.Parameter(torch.ones(shape))
        self.low = None if symmetric else nn.Parameter(-torch.ones(shape))

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Take a range, of the shape of `high`."""
        if self.low is None:
            self.high.copy_(torch.maximum(-low, high))
        else:
            self.low.copy_(low)
            self.high.copy_(high)

    def grid(self) -> tuple[Grid, int, int]:
        """The grid, its lowest integer and its highest."""
        low = -self.high if self.low is None else self.low
        return grid_over(low.detach(), self.high.detach(), self.bits, self.symmetric)

    def fixed(self) -> "FixedQuantiser":
        """The quantiser with its grid as it is now, for good."""
        return FixedQuantiser(*self.grid())

    def integers(self, x: Tensor) -> Tensor:
        """The integers that stand for x, int32."""
        return quantise(x, *self.grid())

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        if self.training:
            return self.learning(x)
        return fake_quantise(x, *self.grid())

    def learning(self, x: Tensor) -> Tensor:
        """The same with gradients of the range."""
        share = len(self.high) if self.high.ndim else 1
        strength = 1 / math.sqrt(x.numel() / share * 2 ** (self.bits - 1))
        shape = (-1, *[1] * (x.ndim - 1)) if self.high.ndim else ()
        high = _slower(self.high, strength).view(shape)
        if self.low is None:
            top = 2 ** (self.bits - 1) - 1
            scale = high.clamp(min=1e-8) / top
            return (_within(_straight(x / scale), -top, top) * scale).to(x.dtype)
        top = 2**self.bits - 1
        low, high = _slower(self.low, strength).view(shape).clamp(max=0), high.clamp(min=0)
        scale = (high - low).clamp(min=1e-8) / top
        zero = _straight(-low / scale)
        return ((_within(_straight(x / scale) + zero, 0, top) - zero) * scale).to(x.dtype)


class FixedQuantiser(nn.Module):
    """Rounds to a grid that stays: scale and zero point are constants, as exports need them.

    Shapes: any, to the same.
    """

    scale: Tensor
    zero: Tensor

    def __init__(self, grid: Grid, low: int, high: int) -> None:
        super().__init__()
        self.ends = low, high
        for name, value in zip(("scale", "zero"), grid, strict=True):
            self.register_buffer(name, value.clone())

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantise(x, (self.scale, self.zero), *self.ends)

    def points(self) -> OnGrid:
        """The same as runtimes know it."""
        return OnGrid(self.scale, self.zero, *self.ends)


def _straight(x: Tensor) -> Tensor:
    """Rounded, with the gradient of what was not; exactly an integer, as clamping needs."""
    return x.round().detach() + (x - x.detach())


def _within(q: Tensor, low: int, high: int) -> Tensor:
    """Cut off, with no gradient of what was; torch.clamp has none of the ends either."""
    return torch.where((q >= low) & (q <= high), q, q.detach().clamp(low, high))


def _slower(x: Tensor, strength: float) -> Tensor:
    """The same number with a share of its gradient."""
    return x.detach() + (x - x.detach()) * strength
