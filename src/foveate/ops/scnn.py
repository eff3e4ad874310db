"""Spatial CNN: rows and columns pass messages on, one after the other, in four directions.

Source: scnn (arXiv 1712.06080, section 3).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements

DIRECTIONS = ("down", "up", "right", "left")


@implements("scnn")
class SpatialPropagation(nn.Module):
    """Each row adds to its own what a convolution makes of the row before, and columns alike.

    A slice has had all that came before it when it passes its message on, so that
    after four directions every pixel has heard of every other.

    Args:
        dim: channels of the input.
        kernel_size: odd width of the convolutions, along the slices.
        directions: which, in their order.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self, dim: int, kernel_size: int = 9, directions: tuple[str, ...] = DIRECTIONS
    ) -> None:
        super().__init__()
        self.messages = nn.ModuleDict(
            {
                name: nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, bias=False)
                for name in directions
            }
        )
        for message in self.messages.values():
            # As the authors' code: deviation sqrt(2 / (5 w C)), so that long chains stay bounded.
            bound = (2 / (5 * kernel_size * dim)) ** 0.5
            nn.init.normal_(message.weight, std=bound)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        for name, message in self.messages.items():
            axis = 2 if name in ("down", "up") else 3
            backwards = name in ("up", "left")
            slices = list(x.unbind(axis))
            order = range(len(slices))[:: -1 if backwards else 1]
            previous: Tensor | None = None
            for i in order:
                if previous is not None:
                    slices[i] = slices[i] + F.relu(message(previous))
                previous = slices[i]
            x = torch.stack(slices, axis)
        return x
