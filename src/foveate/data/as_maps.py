"""Sounds, series, films and points as maps, so that any backbone can look at them.

Source: unireplknet (arXiv 2311.15599, section 3.4): no modality gets a network of its own. Its
learnt projection of points is another paper's; here points are drawn as they lie.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.errors import FoveateError

PREEMPHASIS = 0.97
LOWEST = 20.0  # hertz


def sound_as_map(waves: Tensor, rate: int, bands: int = 128, width: float = 25.0) -> Tensor:
    """Logarithms of energies in mel bands, as Kaldi's `fbank` has them with HTK's mel scale.

    Args:
        waves: (B, samples).
        rate: samples a second.
        bands: between 20 Hz and half the rate.
        width: of a window in milliseconds; windows are 10 ms apart.

    Returns: (B, 1, bands, windows).
    Raises: FoveateError if the sound is shorter than a window.
    """
    taps, step = int(rate * width / 1000), rate // 100
    if waves.shape[-1] < taps:
        raise FoveateError(
            f"a sound of {waves.shape[-1]} samples is shorter than one window of {taps}: give a "
            "longer one, or a lower width"
        )
    frames = waves.unfold(-1, taps, step)  # (B, windows, taps)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat((frames[..., :1], frames[..., :-1]), dim=-1)
    frames = frames - PREEMPHASIS * before
    frames = frames * torch.hann_window(taps, periodic=False).to(frames)
    size = 2 ** math.ceil(math.log2(taps))
    energy = torch.fft.rfft(frames, size).abs().square()[..., :-1]
    filters = _mel_filters(bands, size, rate).to(energy)
    found = (energy @ filters.mT).clamp(min=torch.finfo(torch.float32).eps).log()
    return found.mT.unsqueeze(1)


def _mel_filters(bands: int, size: int, rate: int) -> Tensor:
    """Triangles that are even in mels: (bands, size / 2)."""
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (LOWEST, rate / 2))
    step = (high - low) / (bands + 1)
    left = low + step * torch.arange(bands, dtype=torch.float64)[:, None]
    at = 1127 * (1 + torch.arange(size // 2, dtype=torch.float64) * (rate / size) / 700).log()
    return torch.minimum((at - left) / step, 2 - (at - left) / step).clamp(min=0)


def series_as_map(series: Tensor, width: int | None = None) -> Tensor:
    """A series of vectors, folded into rows of one channel.

    Args:
        series: (B, steps, values).
        width: of the map; by default the one that makes it most nearly square.

    Returns: (B, 1, steps * values / width, width).
    Raises: FoveateError if the width divides not what there is.
    """
    total = series.shape[1] * series.shape[2]
    if width is None:
        width = next(n for n in range(math.isqrt(total), total + 1) if total % n == 0)
    if total % width:
        raise FoveateError(f"{total} values make no rows of {width}: give a divisor")
    return series.reshape(len(series), 1, total // width, width)


def film_as_map(frames: Tensor, columns: int | None = None) -> Tensor:
    """Frames side by side on one sheet, row by row.

    Args:
        frames: (B, T, C, h, w).
        columns: frames in a row; by default as many as there are rows, or more.

    Returns: (B, C, rows * h, columns * w), black where frames are lacking.
    """
    batch, count, chans, high, wide = frames.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    sheet = F.pad(frames, (0, 0) * 3 + (0, rows * columns - count))
    sheet = sheet.unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return sheet.reshape(batch, chans, rows * high, columns * wide)


def points_as_map(points: Tensor, side: int = 224) -> Tensor:
    """Points seen along each axis: how near the nearest one is, in each of three channels.

    Each point covers 3x3 pixels. The cloud is scaled to fill the map, alike along
    all axes.

    Args:
        points: (B, P, 3).
        side: of the map.

    Returns: (B, 3, side, side), 0 where there is nothing and else from 0.5 to 1.
    """
    low, high = points.amin(1, keepdim=True), points.amax(1, keepdim=True)
    middle, extent = (low + high) / 2, (high - low).amax(-1, keepdim=True).clamp(min=1e-12)
    unit = (points - middle) / extent + 0.5  # in [0, 1]
    at = 1 + (unit * (side - 3)).round().long()
    views = []
    for axis in range(3):
        down, right = (at[..., i] for i in range(3) if i != axis)
        near = 0.5 + 0.5 * unit[..., axis]
        view = unit.new_zeros(len(points), side * side)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                view.scatter_reduce_(1, (down + dy) * side + right + dx, near, "amax")
        views.append(view.unflatten(1, (side, side)))
    return torch.stack(views, 1)
