"""Im2win: a convolution lowered to windows that share their columns.

Im2col writes every kernel-sized patch out; neighbouring patches hold the same
columns, written again. Im2win writes, for every row of the result, the strip
of input rows that it needs, column by column: a patch is then one contiguous
run in the strip, and patches overlap in memory.

Source: im2win (Lu, Chu and Liu 2023, section III). The readable twin is torch's own conv2d.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError


@implements("im2win")
def im2win_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0
) -> Tensor:
    """A convolution through strips.

    Args:
        x: (B, C, H, W).
        weight: (K, C, kernel, kernel).
        bias: (K,).

    Returns: (B, K, H', W'), equal to torch's conv2d.
    Raises: FoveateError if channels do not fit.
    """
    strips = im2win(x, weight.shape[2], stride, padding)
    batch, channels, rows, columns, high = strips.shape
    if channels != weight.shape[1]:
        raise FoveateError(f"x has {channels} channels and the kernel {weight.shape[1]}")
    wide = weight.shape[3]
    out_wide = (columns - wide) // stride + 1
    s = strips.stride()
    windows = strips.as_strided(
        (batch, rows, out_wide, channels, wide, high), (s[0], s[2], stride * s[3], s[1], s[3], s[4])
    )
    # (B, H', W', C, kernel, kernel) against (K, C, kernel, kernel) with columns first
    out = torch.einsum("bhwcij,kcij->bkhw", windows, weight.transpose(2, 3))
    return out if bias is None else out + bias.view(1, -1, 1, 1)


def im2win(x: Tensor, kernel: int, stride: int = 1, padding: int = 0) -> Tensor:
    """Strips (B, C, H', W + 2 * padding, kernel): for each output row its input rows, transposed.

    Args:
        x: (B, C, H, W).
    """
    x = F.pad(x, (padding,) * 4)
    return x.unfold(2, kernel, stride).contiguous()


def workspace(shape: tuple[int, int, int, int], kernel: int, stride: int, padding: int) -> dict:
    """Numbers that each lowering writes for an input of `shape` (B, C, H, W), by name."""
    b, c, h, w = shape
    high = (h + 2 * padding - kernel) // stride + 1
    wide = (w + 2 * padding - kernel) // stride + 1
    return {
        "im2col": b * c * high * wide * kernel * kernel,
        "im2win": b * c * high * (w + 2 * padding) * kernel,
    }
