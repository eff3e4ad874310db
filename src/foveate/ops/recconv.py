"""Recursive convolution: a wide view from small kernels at ever coarser scales.

Source: recconv (arXiv 2412.19628, section 3). The authors' code is under Apache-2.0.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements


@implements("recconv")
class RecConv(nn.Module):
    """Halve the map again and again, mix each scale, and add it to the next finer one.

    One strided kernel halves at every level; each scale has a kernel of its
    own. The view grows as kernel_size * 2^level, the weights as level + 2.

    Args:
        dim: channels of the input.
        kernel_size: odd side of every kernel.
        level: how often the map is halved.
        bias: of every convolution.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, kernel_size: int = 5, level: int = 2, bias: bool = False) -> None:
        super().__init__()
        pad = kernel_size // 2
        self.down = nn.Conv2d(dim, dim, kernel_size, stride=2, padding=pad, groups=dim, bias=bias)
        self.convs = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel_size, padding=pad, groups=dim, bias=bias)
            for _ in range(level + 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        scales = [x]
        for _ in self.convs[1:]:
            scales.append(self.down(scales[-1]))
        coarser = None
        for conv, scale in zip(self.convs, reversed(scales), strict=True):
            if coarser is not None:
                scale = scale + F.interpolate(coarser, size=scale.shape[2:], mode="bilinear")
            coarser = conv(scale)
        assert coarser is not None
        return coarser
