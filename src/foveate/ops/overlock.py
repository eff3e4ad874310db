"""ContMix: dynamic kernels that compare each pixel with every region of the map.

Source: overlock (arXiv 2502.20087, section 3). The authors' code is under Apache-2.0.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.merge import fuse_conv_bn_eval
from foveate.ops.unireplknet import DilatedReparam

BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    3: (),
    5: ((3, 1), (3, 2)),
    7: ((5, 1), (3, 1), (3, 2), (3, 3)),
    9: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4)),
    11: ((5, 1), (7, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    13: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    15: ((5, 1), (7, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    17: ((5, 1), (7, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
}
"""Kernel and dilation of the branches beside a large kernel, more than UniRepLKNet has."""
DENSE = 8
"""A map of so many times the places of a window is still mixed by one product of matrices."""


@implements("overlock")
class ContMix(nn.Module):
    """Mix the neighbours of each place by kernels made of its likeness to regions of a context.

    One linear map turns the affinities of a place to all regions into a small and
    a large kernel; half of the channels are mixed by each. Windows at the edge are
    moved inwards. Maps smaller than the large kernel are enlarged for the mixing.

    Args:
        dim: channels.
        kernel_size: odd side of the large kernel.
        heads: groups of channels with kernels of their own.
        context_dim: channels of the context; by default those of the map.
        small: odd side of the small kernel.
        regions: side of the pooled context.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if a kernel is even or heads do not divide half of dim.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int = 7,
        heads: int = 4,
        context_dim: int | None = None,
        small: int = 5,
        regions: int = 7,
    ) -> None:
        super().__init__()
        if dim % (2 * heads):
            raise FoveateError(f"half of {dim} channels cannot be divided among {heads} heads")
        if kernel_size % 2 == 0 or small % 2 == 0:
            raise FoveateError(f"kernels of {small} and {kernel_size} need a centre: give odd ones")
        self.heads, self.regions = heads, regions
        self.kernels = small, kernel_size
        self.scale = (dim // heads) ** -0.5
        self.bias_small, self.bias_large = (
            nn.Parameter(torch.zeros(heads, 2 * side - 1, 2 * side - 1)) for side in self.kernels
        )
        self.query = ConvNorm(dim, dim // 2)
        self.key = ConvNorm(context_dim or dim, dim // 2)
        self.weights = nn.Conv2d(regions**2, small**2 + kernel_size**2, 1)
        self.proj = ConvNorm(dim, dim)

    def forward(
        self, x: Tensor, query: Tensor | None = None, context: Tensor | None = None
    ) -> Tensor:
        """Mix x by kernels from what `query` (B, dim, H, W) and `context` (B, context_dim, h, w)
        have in common; both are x by default."""
        query, context = x if query is None else query, x if context is None else context
        size = x.shape[2], x.shape[3]
        larger = self._enlarged(*size)
        if larger is not None:
            x, query, context = (
                F.interpolate(t, larger, mode="bilinear") for t in (x, query, context)
            )
        kernels = self.make_kernels(query, context)
        halves = zip(x.chunk(2, dim=1), kernels, self.kernels, strict=True)
        mixed = torch.cat([mix_inside(half, kernel, side) for half, kernel, side in halves], dim=1)
        return self.proj(mixed if larger is None else F.adaptive_avg_pool2d(mixed, size))

    def make_kernels(self, query: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The small and the large kernel of each place: (B, heads, H W, side^2)."""
        size = query.shape[2], query.shape[3]
        q, k = self.query(query) * self.scale, F.adaptive_avg_pool2d(context, self.regions)
        q, k = (t.unflatten(1, (self.heads, -1)).flatten(3) for t in (q, self.key(k)))
        # The linear map works on the few regions' keys instead of every place's affinities.
        scores = q.mT @ (k @ self.weights.weight.flatten(1).T) + self.weights.bias
        small, large = scores.split([side * side for side in self.kernels], dim=-1)
        return (
            (small + _of_places(self.bias_small, size, self.kernels[0])).softmax(-1),
            (large + _of_places(self.bias_large, size, self.kernels[1])).softmax(-1),
        )

    def _enlarged(self, high: int, wide: int) -> tuple[int, int] | None:
        """The size at which the shorter side is the large kernel's, if it is shorter than that."""
        side = self.kernels[1]
        if min(high, wide) >= side:
            return None
        if high < wide:
            return side, int(side / high * wide)
        return int(side / wide * high), side


class LargeKernel(nn.Sequential):
    """A large kernel trained with dilated branches, then a batch norm.

    Args:
        dim: channels.
        kernel_size: odd side of the kernel.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if no branches are published for the kernel.
    """

    def __init__(self, dim: int, kernel_size: int) -> None:
        if kernel_size not in BRANCHES:
            raise FoveateError(
                f"no branches are published for a kernel of {kernel_size}: give one of "
                f"{', '.join(map(str, BRANCHES))}"
            )
        super().__init__(
            DilatedReparam(dim, kernel_size, BRANCHES[kernel_size]), nn.BatchNorm2d(dim)
        )

    def merge_branches(self) -> None:
        """Fold the branches and the norm into the large kernel."""
        large, norm = self
        if isinstance(large, DilatedReparam) and isinstance(norm, nn.BatchNorm2d):
            large.merge_branches()
            large.lk_origin = fuse_conv_bn_eval(large.lk_origin, norm)
            self[1] = nn.Identity()


def mix_inside(x: Tensor, weights: Tensor, kernel: int) -> Tensor:
    """Sum the kernel x kernel neighbours of each place, in windows that stay inside the map.

    Small maps are mixed by one product with a matrix of all places; larger ones
    tap by tap.

    Args:
        x: (B, C, H, W), with sides of at least `kernel`.
        weights: (B, G, H W, kernel^2), where each of G groups of channels in a row
            shares its weights.
        kernel: odd side of the windows.

    Returns: (B, C, H, W).
    """
    size, places, taps = (x.shape[2], x.shape[3]), weights.shape[2], weights.shape[3]
    if places > DENSE * taps:
        return mix_inside_by_taps(x, weights, kernel)
    values = x.unflatten(1, (weights.shape[1], -1)).flatten(3).mT
    if places > taps:
        down, right = (_starts(side, kernel, x.device) for side in size)
        at = down[:, None, :, None] * size[1] + right[None, :, None, :]
        at = at.reshape(places, taps).expand(*weights.shape[:2], -1, -1)
        weights = weights.new_zeros(*weights.shape[:3], places).scatter(3, at, weights)
    return (weights @ values).mT.flatten(1, 2).unflatten(2, size)


def mix_inside_by_taps(x: Tensor, weights: Tensor, kernel: int) -> Tensor:
    """The readable twin of `mix_inside`: one neighbour after the other."""
    down, right = (_starts(side, kernel, x.device) for side in x.shape[2:])
    weights = weights.mT.unflatten(3, x.shape[2:])
    values = x.unflatten(1, (weights.shape[1], -1))
    out: Tensor | None = None
    for tap in range(kernel * kernel):
        row, column = divmod(tap, kernel)
        seen = values.index_select(3, down[:, row]).index_select(4, right[:, column])
        weight = weights[:, :, tap, None]
        out = weight * seen if out is None else torch.addcmul(out, weight, seen)
    assert out is not None
    return out.flatten(1, 2)


def _starts(side: int, kernel: int, device: torch.device) -> Tensor:
    """Along one axis, where the neighbours of each place lie: (side, kernel)."""
    first = (torch.arange(side, device=device) - kernel // 2).clamp(0, side - kernel)
    return first[:, None] + torch.arange(kernel, device=device)


def _of_places(table: Tensor, size: tuple[int, int], kernel: int) -> Tensor:
    """A bias for each neighbour of each place, by its distance: (heads, H W, kernel^2)."""
    down, right = (
        _starts(side, kernel, table.device)
        - torch.arange(side, device=table.device)[:, None]
        + (kernel - 1)
        for side in size
    )
    at = down[:, None, :, None] * table.shape[2] + right[:, None]  # (H, W, kernel, kernel)
    found = table.flatten(1).index_select(1, at.flatten())  # faster than table[at]
    return found.view(len(table), size[0] * size[1], kernel * kernel)
