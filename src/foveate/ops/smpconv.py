"""Self-moving points: a large kernel drawn by few points that find their places and reach.

Source: smpconv (arXiv 2304.02330, section 3). The authors' code is under MIT; like it,
and unlike equation 2, a kernel is the sum of its points and not their mean.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError

LEAST_RADIUS, LARGEST_RADIUS = 1e-3, 1.0


@implements("smpconv")
class SelfMovingPoints(nn.Module):
    """A depthwise convolution whose kernels are drawn by points shared among the channels.

    A point adds its weight at its position, and less with the distance, down to
    nothing at its radius.

    Args:
        dim: channels of the input.
        kernel_size: odd side of the kernels.
        points: how many; by default a quarter of the taps.

    Attributes:
        positions: (points, 2), to the right and up, from -1 to 1 over the kernel.
        radii: (points,), in the same unit, held between 0.001 and 1.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if the kernel is even.
    """

    grid: Tensor

    def __init__(self, dim: int, kernel_size: int = 31, points: int | None = None) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise FoveateError(f"a kernel of {kernel_size} pixels has no centre: give an odd one")
        points = points or max(1, kernel_size**2 // 4)
        self.positions = nn.Parameter(torch.empty(points, 2))
        self.radii = nn.Parameter(torch.full((points,), 4 / kernel_size))
        self.weight = nn.Parameter(torch.empty(dim, points))
        nn.init.trunc_normal_(self.positions, std=0.2, a=-1.0, b=1.0)
        nn.init.trunc_normal_(self.weight, std=0.02)
        self.register_buffer("dense", None)
        line = torch.linspace(-1, 1, kernel_size)
        up, right = torch.meshgrid(-line, line, indexing="ij")
        self.register_buffer("grid", torch.stack((right, up)), persistent=False)

    def kernel(self) -> Tensor:
        """The dense kernels: (dim, kernel_size, kernel_size)."""
        if self.dense is not None:
            return self.dense
        apart = (self.positions[:, :, None, None] - self.grid).abs().sum(1)
        radii = self.radii.clamp(LEAST_RADIUS, LARGEST_RADIUS)[:, None, None]
        return torch.einsum("cn,nyx->cyx", self.weight, (1 - apart / radii).relu())

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Keep the dense kernels, and drop what draws them."""
        if self.dense is None:
            self.dense = self.kernel()
            for name in ("weight", "positions", "radii"):
                self.register_parameter(name, None)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel().unsqueeze(1)
        return F.conv2d(x, kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
