"""Two of four: the sparsity that GPUs' matrix units run, and the layout that they take it in.

Source: gpusq_vit (arXiv 2305.10727, sections 2.1 and 3.1). INT8 on top of the masks is
`Quantise`, whose grids keep zeros; its distillation is `foveate.train.gpusq_vit`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.masks import Mask


@implements("gpusq_vit")
@dataclass(frozen=True, kw_only=True)
class MaskTwoOfFour(Mask):
    """Of every four weights that follow each other along a layer's inputs, hold the two smallest.

    Layers whose inputs are no multiple of four are left as they are.
    """

    def leaves(self, name: str, weight: Tensor) -> str:
        inputs = weight.shape[1]
        odd = f"left because its {inputs} inputs are no multiple of 4" if inputs % 4 else ""
        return super().leaves(name, weight) or odd

    def choose(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: two_of_four(weight) for name, weight in weights.items()}


@implements("gpusq_vit")
def two_of_four(weight: Tensor) -> Tensor:
    """The mask: bool, True for the two largest of each four; of equals, the later ones.

    Args:
        weight: (outputs, inputs, ...), inputs a multiple of 4.
    """
    fours = weight.abs().movedim(1, -1).unflatten(-1, (-1, 4))
    order = fours.argsort(dim=-1, stable=True)
    mask = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, order[..., 2:], True)
    return mask.flatten(-2).movedim(-1, 1)


@implements("gpusq_vit")
@dataclass(frozen=True)
class Compressed:
    """A matrix of two in four, as sparse matrix units take it.

    Attributes:
        values: (outputs, inputs / 2), of the matrix's type: what is not held, in order.
        positions: uint8 (outputs, inputs / 8): where each stands among its four, two bits
            each, the first in the lowest bits.
    """

    values: Tensor
    positions: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Compressed":
        """Compress (outputs, inputs); inputs are a multiple of 8.

        Raises: FoveateError if they are not, or some four have more than two that are not zero.
        """
        if matrix.ndim != 2 or matrix.shape[1] % 8:
            raise FoveateError(
                f"a matrix of shape {tuple(matrix.shape)} has no layout of two in four: give two "
                "axes, the second a multiple of 8"
            )
        fours = matrix.unflatten(1, (-1, 4))
        if (fours != 0).sum(-1).amax() > 2:
            raise FoveateError("some four weights have more than two: apply MaskTwoOfFour first")
        taken = (fours != 0).int().argsort(dim=-1, stable=True)[..., 2:].sort(-1).values
        pairs = taken.flatten(1).unflatten(1, (-1, 4))
        shifts = torch.tensor([0, 2, 4, 6], device=matrix.device)
        positions = (pairs << shifts).sum(-1).to(torch.uint8)
        return cls(fours.gather(-1, taken).flatten(1), positions)

    def dense(self) -> Tensor:
        """The matrix again."""
        shifts = torch.tensor([0, 2, 4, 6], device=self.positions.device)
        taken = (self.positions.long()[..., None] >> shifts) & 3
        taken = taken.flatten(1).unflatten(1, (-1, 2))
        values = self.values.unflatten(1, (-1, 2))
        fours = values.new_zeros(*values.shape[:2], 4).scatter_(-1, taken, values)
        return fours.flatten(1)

    @property
    def bytes(self) -> int:
        """What it takes."""
        return sum(t.numel() * t.element_size() for t in (self.values, self.positions))
