"""Recursive gated convolution: interactions of high order between neighbours, by gates alone.

Source: hornet (arXiv 2207.14284, sections 3.1 and 3.3).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError


@implements("hornet")
class RecursiveGatedConv(nn.Module):
    """gnConv: gate a projection with depthwise features again and again, ever wider.

    The widths double from dim / 2^(order - 1) to dim, so that a higher order
    costs hardly more than a lower one.

    Args:
        dim: channels of the input.
        order: how often it is gated.
        mixer: builds from a number of channels what mixes the gates' tokens; by
            default a 7x7 depthwise convolution.
        scale: factor on the gates, which keeps many of them from growing.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if dim cannot be halved so often.
    """

    def __init__(
        self,
        dim: int,
        order: int = 5,
        mixer: Callable[[int], nn.Module] | None = None,
        scale: float = 1 / 3,
    ) -> None:
        super().__init__()
        if order < 1 or dim % 2 ** (order - 1):
            raise FoveateError(
                f"{dim} channels cannot be halved {order - 1} times: give another order"
            )
        self.dims = [dim // 2**i for i in reversed(range(order))]
        gates = sum(self.dims)
        self.proj_in = nn.Conv2d(dim, 2 * dim, 1)
        self.dwconv = mixer(gates) if mixer else nn.Conv2d(gates, gates, 7, padding=3, groups=gates)
        self.proj_out = nn.Conv2d(dim, dim, 1)
        self.pws = nn.ModuleList(
            nn.Conv2d(self.dims[i], self.dims[i + 1], 1) for i in range(order - 1)
        )
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        first, rest = self.proj_in(x).split((self.dims[0], sum(self.dims)), dim=1)
        gates = (self.dwconv(rest) * self.scale).split(self.dims, dim=1)
        x = first * gates[0]
        for widen, gate in zip(self.pws, gates[1:], strict=True):
            x = widen(x) * gate
        return self.proj_out(x)


class GlobalLocalFilter(nn.Module):
    """Half of the channels through a 3x3 depthwise convolution, half through a learned filter in
    the Fourier domain that sees the whole map.

    Args:
        dim: channels, even.
        height, width: of the filter in frequencies, width // 2 + 1 for a map of
            width; for other maps it is interpolated.

    Shapes: (B, dim, H, W) to the same.
    """

    def __init__(self, dim: int, height: int = 14, width: int = 8) -> None:
        super().__init__()
        half = dim // 2
        self.pre_norm = nn.LayerNorm(dim, eps=1e-6)
        self.dw = nn.Conv2d(half, half, 3, padding=1, bias=False, groups=half)
        self.complex_weight = nn.Parameter(torch.empty(half, height, width, 2))
        self.post_norm = nn.LayerNorm(dim, eps=1e-6)
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        near, far = self._norm(x, self.pre_norm).chunk(2, dim=1)
        pair = torch.stack((self.dw(near), self._filter(far)), dim=2)
        return self._norm(pair.flatten(1, 2), self.post_norm)

    def _filter(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        spectrum = torch.fft.rfft2(x.float(), norm="ortho")
        weight = self.complex_weight.float()
        if weight.shape[1:3] != spectrum.shape[2:]:
            maps = weight.permute(3, 0, 1, 2)
            maps = F.interpolate(maps, size=spectrum.shape[2:], mode="bilinear", align_corners=True)
            weight = maps.permute(1, 2, 3, 0)
        filtered = spectrum * torch.view_as_complex(weight.contiguous())
        return torch.fft.irfft2(filtered, s=size, norm="ortho").to(x.dtype)

    def _norm(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
