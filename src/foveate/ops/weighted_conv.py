"""Weighted convolution: taps scaled by a fixed density, so that near ones learn faster than far.

Source: weighted_conv (arXiv 2505.24527). The authors' code is under MIT.
"""

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError

DENSITIES: dict[int, tuple[float, ...]] = {
    1: (),
    3: (0.7,),
    5: (0.2, 0.8),
    7: (0.25, 0.15, 0.55),
}
"""From the edge to the centre's neighbour, by kernel, as the authors suggest."""


@implements("weighted_conv")
class WeightedConv2d(nn.Conv2d):
    """A convolution whose kernel is multiplied by the outer product of a density with itself.

    The density is 1 in the centre and symmetric. `merge_branches` folds it into
    the weights, after which this is a convolution like any other.

    Args:
        in_channels, out_channels, kernel_size, kwargs: as of `nn.Conv2d`; the
            kernel is square and odd.
        density: from the edge to the centre's neighbour; by default the authors'.

    Shapes: as of `nn.Conv2d`.
    Raises: FoveateError if the density does not fit the kernel.
    """

    density: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        density: tuple[float, ...] | None = None,
        **kwargs,
    ) -> None:
        density = DENSITIES.get(kernel_size) if density is None else density
        if density is None or 2 * len(density) + 1 != kernel_size:
            raise FoveateError(
                f"density {density} does not fit a kernel of {kernel_size}: give one number for "
                "each tap between the edge and the centre of an odd kernel"
            )
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        line = torch.tensor((*density, 1.0, *reversed(density)))
        self.register_buffer("density", torch.outer(line, line))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.density, self.bias)

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Fold the density into the weights."""
        self.weight.mul_(self.density)
        self.density.fill_(1.0)


@implements("weighted_conv")
def density_of(conv: nn.Conv2d, line: tuple[float, ...] | None = None) -> WeightedConv2d:
    """A weighted convolution that computes what a plain one does.

    Args:
        conv: a convolution with a square odd kernel; its weights are divided by
            the density.
        line: the density, as `WeightedConv2d` takes it.

    Raises: FoveateError if the kernel is not square.
    """
    if conv.kernel_size[0] != conv.kernel_size[1]:
        raise FoveateError(f"a kernel of {conv.kernel_size} is not square: it has no such density")
    weighted = WeightedConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size[0],
        line,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    with torch.no_grad():
        weighted.weight.copy_(conv.weight / weighted.density)
        if conv.bias is not None and weighted.bias is not None:
            weighted.bias.copy_(conv.bias)
    return weighted
