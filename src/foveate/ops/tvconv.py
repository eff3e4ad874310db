"""Translation-variant convolution: a depthwise kernel for each place, the same for every image.

Source: tvconv (arXiv 2203.10489, section 3).
"""

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.neighbourhood import mix_neighbours


@implements("tvconv")
class TvConv(nn.Module):
    """Make a depthwise kernel at each place from learnt affinity maps, and mix neighbours with it.

    The kernels depend on the place alone, so `merge_branches` computes them once
    and for all.

    Args:
        dim: channels of the input.
        size: height and width of the input; it takes no other.
        kernel_size: odd side of the kernels.
        stride: between places.
        affinities: how many affinity maps there are.
        hidden, layers: width of the net that makes kernels of them, and how many
            layers it has between its first and its last.

    Shapes: (B, dim, *size) to (B, dim, *size / stride).
    Raises: FoveateError for an input of another size.
    """

    def __init__(
        self,
        dim: int,
        size: tuple[int, int],
        kernel_size: int = 3,
        stride: int = 1,
        affinities: int = 4,
        hidden: int = 16,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.dim, self.size, self.kernel_size, self.stride = dim, tuple(size), kernel_size, stride
        places = [-(-side // stride) for side in size]
        self.affinity = nn.Parameter(torch.ones(1, affinities, *places))
        widths = [affinities, *[hidden] * (layers + 1)]
        steps: list[nn.Module] = []
        for i in range(layers + 1):
            steps.append(
                nn.Sequential(
                    nn.Conv2d(widths[i], hidden, 3, padding=1, bias=False),
                    nn.LayerNorm([hidden, *places]),
                    nn.ReLU(inplace=True),
                )
            )
        steps.append(nn.Conv2d(hidden, dim * kernel_size**2, 3, padding=1, bias=False))
        self.generator = nn.Sequential(*steps)
        self.register_buffer("kernels", None)

    def weights(self) -> Tensor:
        """Kernels of all places: (1, dim, kernel_size^2, H / stride, W / stride)."""
        if self.kernels is not None:
            return self.kernels
        return self.generator(self.affinity).unflatten(1, (self.dim, self.kernel_size**2))

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            raise FoveateError(
                f"this layer was made for maps of {self.size}, and got {tuple(x.shape[-2:])}: "
                "give images of the size that the network was made for"
            )
        return mix_neighbours(x, self.weights(), self.kernel_size, self.stride)

    @torch.no_grad()
    def merge_branches(self) -> None:
        """Keep the kernels, and drop what made them."""
        if self.kernels is None:
            self.kernels = self.weights()
            self.generator = nn.Identity()
            self.affinity = None
