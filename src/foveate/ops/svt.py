"""Scattering: a map is split into bands by a dual-tree complex wavelet transform, each band is
mixed in its own way, and the map is put together again.

Source: svt (arXiv 2311.01310, section 3). The authors' repository states no licence. The transform
is the first level of Kingsbury's (Phil. Trans. R. Soc. A 357, 1999) with his near-symmetric
filters of 13 and 19 taps.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError

_13 = [n / 5120 for n in (-9, 0, 114, -240, -247, 1520, 2844)]
_19 = [n / 573440 for n in (40.5, 0, -769.5, -1080, 4104, 13680, -31908, -29640, 171893, 320800)]
LOW = _13 + _13[-2::-1]
LOW_BACK = _19 + _19[-2::-1]
HIGH = [-tap * (-1) ** i for i, tap in enumerate(LOW_BACK)]
HIGH_BACK = [tap * (-1) ** i for i, tap in enumerate(LOW)]
HALF = 0.5**0.5
ROWS, COLUMNS = 1, 2  # of maps with channels last


def split_bands(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One level of the dual-tree complex wavelet transform.

    A side of odd length is first made longer by its last row or column.

    Shapes: (B, C, H, W) to low frequencies (B, C, H, W) and the real and imaginary parts of high
        ones (6, B, C, H / 2, W / 2), whose edges run at 15, 45, 75, 105, 135 and 165 degrees.
    """
    x = x.permute(0, 2, 3, 1)
    for dim in (ROWS, COLUMNS):
        if x.shape[dim] % 2:
            x = torch.cat((x, x.narrow(dim, x.shape[dim] - 1, 1)), dim)
    left, right = _filter(x, LOW, COLUMNS), _filter(x, HIGH, COLUMNS)
    level = _to_complex(_filter(left, HIGH, ROWS, HALF))
    upright = _to_complex(_filter(right, LOW, ROWS, HALF))
    slanted = _to_complex(_filter(right, HIGH, ROWS, HALF))
    pairs = (level[0], slanted[0], upright[0], upright[1], slanted[1], level[1])
    real, imaginary = (
        torch.stack(part).permute(0, 1, 4, 2, 3) for part in zip(*pairs, strict=True)
    )
    return _filter(left, LOW, ROWS).permute(0, 3, 1, 2), real, imaginary


def join_bands(low: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """The map of which `split_bands` made these bands.

    Shapes: as `split_bands` returns them, to (B, C, H, W), both sides even.
    """
    low = low.permute(0, 2, 3, 1)
    real, imaginary = (part.permute(0, 1, 3, 4, 2) for part in (real, imaginary))
    level, slanted, upright = (
        _to_real(real[i], imaginary[i], real[5 - i], imaginary[5 - i]) for i in range(3)
    )
    left = _filter(low, LOW_BACK, ROWS) + _filter(level, HIGH_BACK, ROWS, HALF)
    right = _filter(upright, LOW_BACK, ROWS, HALF) + _filter(slanted, HIGH_BACK, ROWS, HALF)
    x = _filter(left, LOW_BACK, COLUMNS) + _filter(right, HIGH_BACK, COLUMNS)
    return x.permute(0, 3, 1, 2)


def _filter(x: Tensor, taps: list[float], dim: int, scale: float = 1.0) -> Tensor:
    """Convolve along a side, mirrored at its ends: (B, H, W, C) to the same."""
    n, reach = x.shape[dim], len(taps) // 2
    mirrored = [min(i % (2 * n), -(i + 1) % (2 * n)) for i in range(-reach, n + reach)]
    x = x.index_select(dim, torch.tensor(mirrored, device=x.device))
    weight = torch.tensor([tap * scale for tap in taps], dtype=x.dtype, device=x.device)
    kernel = [1, 1, 1, 1]
    kernel[dim + 1] = len(taps)
    channels = x.shape[3]
    weight = weight.view(kernel).expand(channels, -1, -1, -1)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, groups=channels).permute(0, 2, 3, 1)


def _to_complex(x: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Four neighbours to two complex numbers, each (B, H / 2, W / 2, C) twice."""
    a, b, c, d = (x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return (a - d, b + c), (a + d, b - c)


def _to_real(real1: Tensor, imaginary1: Tensor, real2: Tensor, imaginary2: Tensor) -> Tensor:
    """The inverse of `_to_complex`, less a factor of 2."""
    above = torch.stack((real1 + real2, imaginary1 + imaginary2), dim=3)
    below = torch.stack((imaginary1 - imaginary2, real2 - real1), dim=3)
    return torch.stack((above, below), dim=2).flatten(3, 4).flatten(1, 2)


class EinsteinMlp(nn.Module):
    """Two layers on complex numbers, in blocks that do not see each other.

    Args:
        blocks, width: how many there are, and how wide.

    Shapes: real and imaginary parts (..., blocks, width) to the same.
    """

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(0.02 * torch.randn(2, blocks, width, width))
        self.weight2 = nn.Parameter(0.02 * torch.randn(2, blocks, width, width))
        self.bias1 = nn.Parameter(0.02 * torch.randn(2, blocks, width))
        self.bias2 = nn.Parameter(0.02 * torch.randn(2, blocks, width))

    def forward(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        shape = real.shape
        x = torch.cat((real, imaginary), dim=-1).flatten(0, -3).transpose(0, 1)
        x = _multiply(x, self.weight1, self.bias1).relu_()
        x = _multiply(x, self.weight2, self.bias2).transpose(0, 1)
        real, imaginary = x.chunk(2, dim=-1)
        return real.reshape(shape), imaginary.reshape(shape)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex layer as a real one of twice the width: (blocks, N, 2 width) to the same."""
    real, imaginary = weight.to(x.dtype)
    above = torch.cat((real, imaginary), dim=-1)
    below = torch.cat((-imaginary, real), dim=-1)
    bias = bias.to(x.dtype).permute(1, 0, 2).flatten(1).unsqueeze(1)
    return (x @ torch.cat((above, below), dim=1)).add_(bias)


@implements("svt")
class ScatteringMixer(nn.Module):
    """Low frequencies are scaled, each place and channel by a number of its own; high ones are
    mixed across channels by an `EinsteinMlp`, alike at all places and in all directions.

    Args:
        dim: channels.
        side: of the maps that the scales are learnt for; others get them interpolated.
        blocks: among which the channels are shared.
        tokens: let high frequencies of a row then mix across its places too, which ties the
            mixer to maps of that side.

    Shapes: (B, dim, H, W) to the same.
    Raises: FoveateError if blocks do not divide dim, or `tokens` meet maps of another side.
    """

    def __init__(self, dim: int, side: int, blocks: int = 4, tokens: bool = False) -> None:
        super().__init__()
        if dim % blocks:
            raise FoveateError(f"{dim} channels cannot be divided among {blocks} blocks")
        self.side, self.blocks = side, blocks
        self.low = nn.Parameter(0.02 * torch.randn(dim, side, side))
        self.high = EinsteinMlp(blocks, dim // blocks)
        half = (side + 1) // 2
        self.tokens = EinsteinMlp(half, half) if tokens else None

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        if self.tokens is not None and (height, width) != (self.side, self.side):
            raise FoveateError(
                f"tokens of a map of {(height, width)} cannot be mixed by weights for a side of "
                f"{self.side}: give maps of that side, or leave `tokens` off"
            )
        fine = x if x.dtype == torch.float64 else x.float()  # halves are too coarse for filters
        low, *parts = split_bands(fine)
        parts = [part.permute(0, 1, 3, 4, 2).unflatten(4, (self.blocks, -1)) for part in parts]
        parts = [part.flatten(4).permute(0, 1, 4, 2, 3) for part in self.high(*parts)]
        if self.tokens is not None:
            parts = self.tokens(*parts)
        x = join_bands(low * self._scales(low), *parts).to(x.dtype)
        return x[:, :, :height, :width]

    def _scales(self, low: Tensor) -> Tensor:
        scales = self.low.to(low.dtype)
        if scales.shape[1:] == low.shape[2:]:
            return scales
        return F.interpolate(scales[None], low.shape[2:], mode="bilinear")[0]


@implements("svt")
class HalfScatteringMixer(nn.Module):
    """Half of the channels through a 3x3 depthwise convolution, half through a `ScatteringMixer`
    that mixes channels and tokens; then one of each in turn.

    Args:
        dim, side, blocks: as of a `ScatteringMixer`.

    Shapes: (B, dim, side, side) to the same.
    """

    def __init__(self, dim: int, side: int, blocks: int = 4) -> None:
        super().__init__()
        half = dim // 2
        self.conv = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.scattering = ScatteringMixer(half, side, blocks, tokens=True)

    def forward(self, x: Tensor) -> Tensor:
        near, far = x.chunk(2, dim=1)
        return torch.stack((self.conv(near), self.scattering(far)), dim=2).flatten(1, 2)
