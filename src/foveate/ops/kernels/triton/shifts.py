"""Shifts of channels by whole pixels: a mixer of neighbours without arithmetic or weights.

Bound by memory: one read and one write of the map, where slices and a concatenation, or a
roll and a mask, take several. The gradient is the shift back.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.errors import FoveateError
from foveate.ops.kernels.triton.tiles import (
    AS_IT_IS,
    ROWS,
    as_map,
    blocks,
    is_channels_last,
    launch,
    load_row,
    new_map,
    of_image,
    store_rows,
    tile_of,
)


def shift(x: Tensor, offsets: Tensor) -> Tensor:
    """Read each channel some pixels further on: y[c, i, j] = x[c, i + down[c], j + across[c]].

    Args:
        x: maps (B, C, H, W), on a GPU, in any layout; they are zero outside.
        offsets: (C, 2), whole numbers: down and across, in pixels, for each channel.

    Shapes: (B, C, H, W) to the same, channels_last where x is.
    Raises: FoveateError if the offsets are not two whole numbers for each channel.
    """
    if offsets.shape != (x.shape[1], 2) or offsets.is_floating_point():
        raise FoveateError(
            f"offsets of shape {tuple(offsets.shape)} and type {offsets.dtype} do not fit "
            f"{x.shape[1]} channels: give ({x.shape[1]}, 2) whole numbers"
        )
    return _shift(x, offsets, 1)


@torch.library.custom_op("foveate_triton::shift", mutates_args=())
def _shift(x: Tensor, offsets: Tensor, sign: int) -> Tensor:
    b, channels, high, wide = x.shape
    y = new_map(x, x.shape, is_channels_last(x))
    tile = blocks(channels, wide, is_channels_last(x))
    rows, columns = triton.cdiv(high, ROWS), triton.cdiv(wide, tile["BLOCK_W"])
    launch(
        _shift_tile,
        b * rows * columns * triton.cdiv(channels, tile["BLOCK_C"]),
        x,
        as_map(x),
        offsets.contiguous(),
        as_map(y),
        channels,
        SIGN=sign,
        **tile,
    )
    return y


@_shift.register_fake
def _(x, offsets, sign):
    return new_map(x, x.shape, is_channels_last(x))


@triton.jit
def _shift_tile(
    source,
    offsets,
    target,
    channels,
    SIGN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    image, top, block, col = tile_of(
        tl.program_id(0), tl.cdiv(channels, BLOCK_C), target[1], BLOCK_W
    )
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    has_channel = c < channels
    mask = has_channel & (col < target[1][1])
    row = top + SIGN * tl.load(offsets + 2 * c, mask=has_channel, other=0)
    at = col + SIGN * tl.load(offsets + 2 * c + 1, mask=has_channel, other=0)
    x = of_image(source, image)
    y0 = load_row(x, c, row, at, mask, AS_IT_IS)
    y1 = load_row(x, c, row + 1, at, mask, AS_IT_IS)
    y2 = load_row(x, c, row + 2, at, mask, AS_IT_IS)
    y3 = load_row(x, c, row + 3, at, mask, AS_IT_IS)
    store_rows(of_image(target, image), c, top, col, mask, (y0, y1, y2, y3))


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _, offsets, ctx.sign = inputs
    ctx.save_for_backward(offsets)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _shift(gradient, *ctx.saved_tensors, -ctx.sign), None, None


_shift.register_autograd(_backward, setup_context=_remember)
