"""The gradient of depthwise kernels and biases: few outputs, each a sum over all images.

A program owns four kernel rows by up to eight kernel columns of some channels, and a share of the
images. It walks down the output rows with four input rows in registers, so that each row loaded
serves four multiply-adds, keeps a sum for each place of its tile, adds these up at the end
and writes one partial sum for each tap. The partial sums are added up in order by a second,
small pass. So the same input gives the same bits, which atomic additions would not.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.ops.kernels.triton.tiles import (
    AS_IT_IS,
    ROWS,
    accumulator,
    as_map,
    geometry,
    is_channels_last,
    launch,
    load_row,
    of_image,
)

PROGRAMS = 1056
"""Programs to share the images among, images permitting: eight for each of an H100's processors.
A constant, because the order of additions, and so the bits, must not depend on the GPU."""


@torch.library.custom_op("foveate_triton::depthwise_weight_gradient", mutates_args=())
def weight_gradient(
    gradient: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of the kernels (C, 1, kh, kw) and of the bias (C,), in the type of the sums."""
    batch, channels = x.shape[:2]
    wide = gradient.shape[3]
    taps_w = min(triton.next_power_of_2(kernel[1]), 8)
    if is_channels_last(x):
        block_c = min(triton.next_power_of_2(channels), 32)
        block_w = min(triton.next_power_of_2(wide), 1024 // (block_c * taps_w), 16)
    else:
        block_w = min(triton.next_power_of_2(wide), 64)
        block_c = min(triton.next_power_of_2(channels), 1024 // (block_w * taps_w))
    groups = triton.cdiv(kernel[0], ROWS) * triton.cdiv(kernel[1], taps_w)
    programs = groups * triton.cdiv(channels, block_c)
    images = max(1, triton.cdiv(batch, triton.cdiv(PROGRAMS, programs)))
    chunks = triton.cdiv(batch, images)
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight_sums = x.new_empty((chunks, channels, 1, *kernel), dtype=kind)
    bias_sums = x.new_empty((chunks, channels), dtype=kind)
    launch(
        _weight_gradient,
        chunks * programs,
        x,
        as_map(x),
        as_map(gradient),
        weight_sums,
        bias_sums,
        batch,
        channels,
        images,
        GEOMETRY=geometry(kernel, stride, padding, dilation),
        ACC=accumulator(x),
        BLOCK_C=block_c,
        TAPS_W=taps_w,
        BLOCK_W=block_w,
    )
    return weight_sums.sum(0), bias_sums.sum(0)


@weight_gradient.register_fake
def _(gradient, x, kernel, stride, padding, dilation):
    kind = torch.float64 if x.dtype == torch.float64 else torch.float32
    channels = x.shape[1]
    return (
        x.new_empty((channels, 1, *kernel), dtype=kind),
        x.new_empty((channels,), dtype=kind),
    )


@triton.jit
def _weight_gradient(
    source,
    gradient,
    weight_sums,
    bias_sums,
    batch,
    channels,
    images,
    GEOMETRY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    TAPS_W: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    KERNEL: tl.constexpr = GEOMETRY[0]
    STRIDE: tl.constexpr = GEOMETRY[1]
    PADDING: tl.constexpr = GEOMETRY[2]
    DILATION: tl.constexpr = GEOMETRY[3]
    COLUMN_GROUPS: tl.constexpr = (KERNEL[1] + TAPS_W - 1) // TAPS_W
    ROW_GROUPS: tl.constexpr = (KERNEL[0] + 3) // 4
    height, width = gradient[1]
    program = tl.program_id(0)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    c = (program % channel_blocks) * BLOCK_C + tl.arange(0, BLOCK_C)[:, None, None]
    has_channel = c < channels
    program = program // channel_blocks
    left_tap = program % COLUMN_GROUPS * TAPS_W
    kw = left_tap + tl.arange(0, TAPS_W)[None, :, None]
    has_tap = kw < KERNEL[1]
    program = program // COLUMN_GROUPS
    kh = program % ROW_GROUPS * 4
    chunk = program // ROW_GROUPS

    MANY: tl.constexpr = KERNEL[0] > 1
    SLIDES: tl.constexpr = STRIDE[0] == 1 and DILATION[0] == 1 and MANY
    STEP: tl.constexpr = DILATION[0]
    bias_sum = tl.zeros((BLOCK_C, 1, BLOCK_W), ACC)
    w0 = tl.zeros((BLOCK_C, TAPS_W, BLOCK_W), ACC)
    w1 = w0
    w2 = w0
    w3 = w0
    first_image = chunk.to(tl.int64) * images
    for image in range(tl.minimum(images, batch - chunk * images)):
        x = of_image(source, first_image + image)
        g = of_image(gradient, first_image + image)
        for left in range(0, width, BLOCK_W):
            col = left + tl.arange(0, BLOCK_W)[None, None, :]
            at = col * STRIDE[1] - PADDING[1] + kw * DILATION[1]
            has_g = has_channel & (col < width)
            has_x = has_g & has_tap
            first = kh * STEP - PADDING[0]
            if SLIDES:
                x1 = load_row(x, c, first, at, has_x, AS_IT_IS).to(ACC)
                x2 = load_row(x, c, first + 1, at, has_x, AS_IT_IS).to(ACC)
                x3 = load_row(x, c, first + 2, at, has_x, AS_IT_IS).to(ACC)
            for out in range(height):
                dy = load_row(g, c, out, col, has_g, AS_IT_IS).to(ACC)
                row = first + out * STRIDE[0]
                if SLIDES:
                    x0, x1, x2 = x1, x2, x3
                    x3 = load_row(x, c, row + 3, at, has_x, AS_IT_IS).to(ACC)
                else:
                    x0 = load_row(x, c, row, at, has_x, AS_IT_IS).to(ACC)
                    if MANY:
                        x1 = load_row(x, c, row + STEP, at, has_x, AS_IT_IS).to(ACC)
                        x2 = load_row(x, c, row + 2 * STEP, at, has_x, AS_IT_IS).to(ACC)
                        x3 = load_row(x, c, row + 3 * STEP, at, has_x, AS_IT_IS).to(ACC)
                bias_sum += dy
                w0 += x0 * dy
                if MANY:
                    w1 += x1 * dy
                    w2 += x2 * dy
                    w3 += x3 * dy

    channel = chunk.to(tl.int64) * channels + c
    is_first = has_channel & (left_tap + kh + tl.zeros_like(c) == 0)
    tl.store(bias_sums + channel, tl.sum(bias_sum, 2, keep_dims=True), mask=is_first)
    to = weight_sums + channel * (KERNEL[0] * KERNEL[1]) + kh * KERNEL[1] + kw
    is_tap = has_channel & has_tap
    below = KERNEL[0] - kh + tl.zeros_like(c)
    tl.store(to, tl.sum(w0, 2, keep_dims=True), mask=is_tap)
    tl.store(to + KERNEL[1], tl.sum(w1, 2, keep_dims=True), mask=is_tap & (below > 1))
    tl.store(to + 2 * KERNEL[1], tl.sum(w2, 2, keep_dims=True), mask=is_tap & (below > 2))
    tl.store(to + 3 * KERNEL[1], tl.sum(w3, 2, keep_dims=True), mask=is_tap & (below > 3))
