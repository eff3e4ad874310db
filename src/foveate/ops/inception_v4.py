"""Inception cells, written as data, and the scaled residual around them.

Source: inception_v4 (arXiv 1602.07261, section 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.ops.conv_norm import ConvNorm

EPS = 1e-3


@dataclass(frozen=True)
class Conv:
    """A convolution, batch norm and ReLU.

    Args:
        out: output channels.
        kernel: its side, or height and width.
        stride: 2 halves the map.
        valid: pad nothing; layers of stride 2 never pad.
    """

    out: int
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    valid: bool = False


@dataclass(frozen=True)
class Pool:
    """The maximum (stride 2) or the average (stride 1) of 3x3 pixels."""

    stride: int = 1


@dataclass(frozen=True)
class Cell:
    """Paths side by side, each a row of layers; their outputs are concatenated."""

    paths: tuple[tuple["Conv | Pool | Cell", ...], ...]


Layer = Conv | Pool | Cell


class Paths(nn.Sequential):
    """Modules that see the same map, side by side.

    Shapes: (B, C, H, W) to the concatenation of what each gives.
    """

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([path(input) for path in self], dim=1)


def build(
    layers: tuple[Layer, ...], dim: int, width: float = 1.0, padded: bool = False
) -> tuple[nn.Sequential, int]:
    """Make modules of a row of layers.

    Args:
        layers: in their order.
        dim: channels of the input.
        width: share of the channels that layers name.
        padded: pad layers that the paper leaves unpadded, so that strides divide sizes.

    Returns: the modules, and the channels of their output.
    """
    made = nn.Sequential()
    for layer in layers:
        module: nn.Module
        if isinstance(layer, Conv):
            pad = 0 if (layer.valid or layer.stride > 1) and not padded else None
            out = max(1, round(width * layer.out))
            module = ConvNorm(dim, out, layer.kernel, layer.stride, eps=EPS, pad=pad)
            module.add_module("act", nn.ReLU(inplace=True))
            dim = out
        elif isinstance(layer, Pool):
            if layer.stride > 1:
                module = nn.MaxPool2d(3, layer.stride, int(padded))
            else:
                module = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        else:
            built = [build(path, dim, width, padded) for path in layer.paths]
            module = Paths(*(path for path, _ in built))
            dim = sum(width for _, width in built)
        made.append(module)
    return made, dim


@implements("inception_v4")
class ScaledResidual(nn.Module):
    """The input and a share of what a cell makes of it, brought to its width without activation.

    Args:
        dim: channels of the input.
        cell: the paths.
        scale: of what the cell gives, 0.1 to 0.3 in the paper.
        width: share of the channels that the cell's layers name.
        act: end with ReLU.
        shortcut: add the input; without it, the cell alone is left.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(
        self,
        dim: int,
        cell: Cell,
        scale: float,
        width: float = 1.0,
        act: bool = True,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        made, inner = build((cell,), dim, width)
        self.cell = made[0]
        self.up = nn.Conv2d(inner, dim, 1)
        self.scale, self.shortcut = scale, shortcut
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.cell(x))
        return self.act(torch.add(x, y, alpha=self.scale) if self.shortcut else y)
