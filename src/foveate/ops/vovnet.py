"""One-shot aggregation: a chain of convolutions whose outputs are joined once, at its end.

Source: vovnet (arXiv 1904.09730, section 3.2).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from foveate.catalog import implements


@implements("vovnet")
class OneShotAggregation(nn.Module):
    """Convolutions in a row; the input and all their outputs, joined and reduced by a 1x1.

    Args:
        dim: channels of the input.
        dim_out: channels of the output.
        inner: channels of each convolution.
        layers: how many there are.
        residual: add the input to the output; they need as many channels.

    Shapes: (B, dim, H, W) to (B, dim_out, H, W).
    """

    def __init__(
        self, dim: int, dim_out: int, inner: int, layers: int = 5, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        widths = [dim, *[inner] * layers]
        self.convs = nn.ModuleList(_unit(i, o, 3) for i, o in pairwise(widths))
        self.join = _unit(sum(widths), dim_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for conv in self.convs:
            maps.append(conv(maps[-1]))
        joined = self.join(torch.cat(maps, dim=1))
        return joined + x if self.residual else joined


def _unit(dim: int, dim_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(dim, dim_out, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(dim_out),
        nn.ReLU(inplace=True),
    )
