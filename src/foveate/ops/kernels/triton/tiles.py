"""Tiles of maps: which one a program owns, how its rows are read, convolved and written.

A program owns four rows of BLOCK_C channels by BLOCK_W columns of one image. The layout of a
map is in its strides alone: Triton compiles anew where a stride is 1, and lays the tile's
threads along that axis, so the same code reads contiguous and channels_last maps.

Once a map comes from memory only once, what bounds a depthwise convolution is the traffic
between the first-level cache and the registers: a value loaded for each multiply-add. So a
program walks down each column of taps with four input rows in registers: a step loads one new
row and one weight for four multiply-adds.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4
"""Output rows of a program."""
AS_IT_IS = tl.constexpr((1, 1))
"""`load_row`'s UP of a map that stands for itself."""


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a map (B, C, H, W) lie side by side in memory."""
    return x.stride(1) == 1 and x.size(1) > 1


def new_map(x: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """An empty map of x's type in either layout."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def dense(x: Tensor, channels_last: bool) -> Tensor:
    """A map without gaps in either layout: itself where it is that."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.contiguous(memory_format=layout)


def as_map(x: Tensor) -> tuple[Tensor, tuple[int, ...], tuple[int, ...]]:
    """A batch of maps as kernels take it: itself, (height, width), and strides."""
    return x, tuple(x.shape[2:]), x.stride()


def as_filters(
    weight: Tensor, bias: Tensor | None, channels_last: bool
) -> tuple[Tensor, tuple[int, ...], Tensor | None]:
    """Kernels (C, 1, kh, kw) as `convolve_tile` takes them: taps, strides, biases.

    Threads along channels read taps of neighbouring channels, which are put side by side for them.
    """
    taps = weight.flatten(1)
    taps = taps.t().contiguous().t() if channels_last else taps.contiguous()
    return taps, taps.stride(), bias if bias is None else bias.contiguous()


def geometry(*pairs: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Kernel, stride, spacing, padding and dilation, (down, across) each, as constants."""
    return tuple(tuple(int(side) for side in pair) for pair in pairs)


def blocks(channels: int, width: int, channels_last: bool) -> dict[str, int]:
    """Sides of a tile: 256 places for threads along columns, 1024 for vectors along channels."""
    if channels_last:
        wide = min(triton.next_power_of_2(channels), 64)
        return {"BLOCK_C": wide, "BLOCK_W": min(triton.next_power_of_2(width), 1024 // wide, 16)}
    wide = min(triton.next_power_of_2(width), 64)
    return {"BLOCK_C": min(triton.next_power_of_2(channels), 256 // wide), "BLOCK_W": wide}


def accumulator(x: Tensor) -> tl.dtype:
    """The type that sums are kept in: float32, or float64 for float64."""
    return tl.float64 if x.dtype == torch.float64 else tl.float32


def launch(kernel: Any, programs: int, where: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run a kernel with so many programs on the GPU of a tensor, if there is anything to do."""
    if programs:
        with torch.cuda.device_of(where):
            kernel[(programs,)](*arguments, **constants, enable_fp_fusion=True)


@triton.jit
def tile_of(program, channel_blocks, size, BLOCK_W: tl.constexpr):
    """A program's tile: image, top row, block of channels, columns (1, BLOCK_W).

    Programs that run together share pixels, so that what one leaves of a cache line the next takes.
    """
    block = program % channel_blocks
    program = program // channel_blocks
    column_blocks = tl.cdiv(size[1], BLOCK_W)
    col = (program % column_blocks) * BLOCK_W + tl.arange(0, BLOCK_W)[None, :]
    program = program // column_blocks
    row_blocks = tl.cdiv(size[0], 4)
    top = (program % row_blocks) * 4
    image = (program // row_blocks).to(tl.int64)
    return image, top, block, col


@triton.jit
def of_image(map, image):
    """One image's part of a batch of maps: (pointer, (height, width), strides)."""
    x, size, strides = map
    return x + image * strides[0], size, strides


@triton.jit
def load_row(map, c, row, col, mask, UP: tl.constexpr):
    """A row of a tile of one image's map, zero outside of it.

    Args:
        map: pointer, (height, width), and strides (image, channel, row, column).
        c, row, col: channels (channels, 1), a number, and columns (1, columns).
        mask: which places of the tile exist.
        UP: (down, across): the map stands for one with UP - 1 zeros between its neighbours,
            which is what the gradient of a strided convolution is a convolution of.
    """
    x, size, strides = map
    row = row + tl.zeros_like(col)  # a block: the interpreter mistakes the type of scalar masks
    inside = mask & (row >= 0) & (col >= 0)
    if UP[0] > 1:
        inside = inside & (row % UP[0] == 0)
        row = row // UP[0]
    if UP[1] > 1:
        inside = inside & (col % UP[1] == 0)
        col = col // UP[1]
    inside = inside & (row < size[0]) & (col < size[1])
    at = c * strides[1] + row * strides[2] + col * strides[3]
    return tl.load(x + at, mask=inside, other=0.0)


@triton.jit
def store_rows(map, c, top, col, mask, rows):
    """Write four rows from `top` on of a tile; map, c, col and mask are as in `load_row`."""
    y, size, strides = map
    at = y + c * strides[1] + top * strides[2] + col * strides[3]
    left = size[0] - top + tl.zeros_like(col)
    tl.store(at, rows[0], mask=mask)
    tl.store(at + strides[2], rows[1], mask=mask & (left > 1))
    tl.store(at + 2 * strides[2], rows[2], mask=mask & (left > 2))
    tl.store(at + 3 * strides[2], rows[3], mask=mask & (left > 3))


@triton.jit
def convolve_tile(
    source,
    filters,
    target,
    channels,
    c,
    top,
    col,
    GEOMETRY: tl.constexpr,
    FLIP: tl.constexpr,
    ACC: tl.constexpr,
):
    """Write four rows from `top` on of a tile of one image's depthwise convolution.

    Args:
        source, target: maps as in `load_row`.
        filters: pointer to the kernels, their strides (channel, tap), and pointer to the biases
            or None.
        channels: how many there are.
        c, col: channels (channels, 1) and output columns (1, columns).
        GEOMETRY: (down, across) each of kernel, stride, `load_row`'s UP, padding and dilation.
        FLIP: whether the kernels are turned by half a turn.
        ACC: the type of the sums.
    """
    KERNEL: tl.constexpr = GEOMETRY[0]
    STRIDE: tl.constexpr = GEOMETRY[1]
    UP: tl.constexpr = GEOMETRY[2]
    PADDING: tl.constexpr = GEOMETRY[3]
    DILATION: tl.constexpr = GEOMETRY[4]
    STEP: tl.constexpr = STRIDE[0]
    SLIDES: tl.constexpr = STRIDE[0] == 1 and DILATION[0] == 1
    weight, weight_strides, bias = filters
    has_channel = c < channels
    mask = has_channel & (col < target[1][1])
    y0 = tl.zeros(mask.shape, ACC)
    if bias is not None:
        y0 += tl.load(bias + c, mask=has_channel, other=0.0).to(ACC)
    y1 = y0
    y2 = y0
    y3 = y0
    first = top * STEP - PADDING[0]
    for kw in range(KERNEL[1]):
        at = col * STRIDE[1] - PADDING[1] + kw * DILATION[1]
        if SLIDES:
            x1 = load_row(source, c, first, at, mask, UP).to(ACC)
            x2 = load_row(source, c, first + 1, at, mask, UP).to(ACC)
            x3 = load_row(source, c, first + 2, at, mask, UP).to(ACC)
        for kh in tl.static_range(KERNEL[0]):  # pyright: ignore[reportGeneralTypeIssues]
            row = first + kh * DILATION[0]
            if SLIDES:
                x0, x1, x2 = x1, x2, x3
            else:
                x0 = load_row(source, c, row, at, mask, UP).to(ACC)
                x1 = load_row(source, c, row + STEP, at, mask, UP).to(ACC)
                x2 = load_row(source, c, row + 2 * STEP, at, mask, UP).to(ACC)
            x3 = load_row(source, c, row + 3 * STEP, at, mask, UP).to(ACC)
            tap = kh * KERNEL[1] + kw
            if FLIP:
                tap = KERNEL[0] * KERNEL[1] - 1 - tap
            taps = weight + c * weight_strides[0] + tap * weight_strides[1]
            w = tl.load(taps, mask=has_channel, other=0.0).to(ACC)
            y0 += x0 * w
            y1 += x1 * w
            y2 += x2 * w
            y3 += x3 * w
    store_rows(target, c, top, col, mask, (y0, y1, y2, y3))
