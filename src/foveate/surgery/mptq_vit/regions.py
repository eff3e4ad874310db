"""OPT-m: a grid whose letters lie densely in one region and sparsely in another, with a ratio of
the two scales, 2^m, that the values themselves decide.

Source: mptq_vit (arXiv 2401.14895). Integers of the coarse region are those of the fine one shifted
by m, so a product adds them up alike. The paper's own division of values was not to be read: here
data chooses among those of twin uniform quantisation (PTQ4ViT, arXiv 2111.12293, section 3.3), one
that divides by sign and by size at once, and none.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.integers import affine_grid
from foveate.surgery.quant_whitepaper_qualcomm.quantiser import Quantiser

Ends = tuple[tuple[int, int], tuple[int, int]]
"""Lowest and highest integers of the fine region, and of the coarse one."""

SHARES, FURTHER, ENOUGH = 20, 2, 2**12
"""Tops that are tried, as shares of the largest value; how far m may go beyond the bits; and
quantiles that stand for all values."""


def divisions(bits: int) -> dict[str, Ends]:
    """The ways to divide 2^bits letters among two regions, half for each.

    "size" has small values and large ones, none below zero; "sign" those below zero and those
    above; "both" small values of either sign, and large ones above zero.
    """
    half, quarter = 2 ** (bits - 1), 2 ** (bits - 2)
    return {
        "size": ((0, half - 1), (0, half - 1)),
        "sign": ((-half, 0), (0, half - 1)),
        "both": ((-quarter, quarter - 1), (0, half - 1)),
    }


@implements("mptq_vit")
class RegionQuantiser(Quantiser):
    """Rounds each value to the nearest letter of either region.

    In training, gradients pass straight through the rounding to what lies between the lowest and
    the highest letter; the regions stay.

    Args:
        bits: 2 to 8, one of which says which region an integer belongs to.

    Attributes:
        high: the highest letter, which is the coarse region's.
        ratio: m, by which power of two the coarse scale is larger.
        ends: integers of the regions, (2, 2), as `divisions` has them.

    Shapes: any, to the same.
    """

    ratio: Tensor
    ends: Tensor

    def __init__(self, bits: int) -> None:
        super().__init__(bits, symmetric=True)
        self.register_buffer("ratio", torch.zeros((), dtype=torch.int32))
        self.register_buffer("ends", torch.tensor(divisions(bits)["size"], dtype=torch.int32))

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Take the division, the ratio and the top of least squared error.

        Args:
            values: any number of them.

        Raises: FoveateError if none is above zero.
        """
        values = values.flatten().float().sort().values
        most = values[-1]
        if most <= 0:
            raise FoveateError("no value is above zero, so that regions have no top: use a grid")
        values = torch.cat((values[:: max(1, len(values) // ENOUGH)], values[-1:]))
        best = torch.inf
        for high, ratio, ends in self._candidates(values[0], most):
            error = (nearest(values, high, ratio, ends) - values).square().mean().item()
            if error < best:
                best = error
                self.high.copy_(high)
                self.ratio.copy_(ratio)
                self.ends.copy_(ends)

    def _candidates(self, low: Tensor, most: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Highest letters, ratios and ends of regions, for values between these two."""
        ratios = torch.arange(self.bits + FURTHER + 1, device=most.device)
        for share in torch.linspace(1, 1 / SHARES, SHARES).tolist():
            for ends in divisions(self.bits).values():
                for ratio in ratios:
                    yield most * share, ratio, torch.tensor(ends, device=most.device)
            (scale, zero), top = affine_grid(low, most * share, self.bits), 2**self.bits - 1
            if zero < top:
                undivided = torch.stack((-zero, top - zero)).expand(2, 2)
                yield scale * (top - zero), ratios[0], undivided

    def fixed(self) -> "RegionQuantiser":  # pyright: ignore[reportIncompatibleMethodOverride]
        """The quantiser as it is now, for good."""
        return copy.deepcopy(self).requires_grad_(False)

    def letters(self) -> Tensor:
        """All numbers that it rounds to, in order."""
        coarse = self.high.detach() / self.ends[1, 1]
        scales = coarse * torch.exp2(-self.ratio.float()), coarse
        rows = [
            torch.arange(int(low), int(high) + 1, device=coarse.device) * scale
            for (low, high), scale in zip(self.ends, scales, strict=True)
        ]
        return torch.cat(rows).unique()

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        y = nearest(x.detach(), self.high.detach(), self.ratio, self.ends)
        if not self.training:
            return y
        letters = self.letters()
        passed = x.clamp(letters[0], letters[-1])
        return passed + (y - passed).detach()


def nearest(x: Tensor, high: Tensor, ratio: Tensor, ends: Tensor) -> Tensor:
    """The nearest letters: of two equally near, the coarse region's.

    Args:
        x: any shape.
        high: the highest letter.
        ratio: m, the coarse scale being 2^m times the fine one.
        ends: integers of the two regions, (2, 2).
    """
    coarse = high / ends[1, 1]
    fine = coarse * torch.exp2(-ratio.float())
    near = (x / fine).round().clamp(ends[0, 0], ends[0, 1]) * fine
    far = (x / coarse).round().clamp(ends[1, 0], ends[1, 1]) * coarse
    return torch.where((near - x).abs() < (far - x).abs(), near, far).to(x.dtype)
