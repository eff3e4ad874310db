"""The Inception mixer in one launch: identity, a square and two bands, with no split and no concat.

Bound by memory: a launch reads and writes the map once, 23 us for 32x96x56x56 in float32 at an
H100's 3.35 TB/s; three convolutions and a concatenation move the convolved parts once more. Each
program has one block of channels of one part; programs of all parts run side by side, channels
fastest, so that what one leaves of a cache line of a channels_last map the next takes. The input
gradient is the same launch with turned kernels. The weight gradients only read the convolved
parts, one launch each.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.errors import FoveateError
from foveate.ops.kernels.autocast import cast_like_autocast
from foveate.ops.kernels.triton.depthwise import weight_gradient
from foveate.ops.kernels.triton.tiles import (
    AS_IT_IS,
    ROWS,
    accumulator,
    as_filters,
    as_map,
    blocks,
    convolve_tile,
    dense,
    geometry,
    is_channels_last,
    launch,
    load_row,
    new_map,
    of_image,
    store_rows,
    tile_of,
)


def inception_mix(
    x: Tensor,
    square_w: Tensor,
    square_b: Tensor | None,
    wide_w: Tensor,
    wide_b: Tensor | None,
    tall_w: Tensor,
    tall_b: Tensor | None,
) -> Tensor:
    """Leave the first channels, convolve the last three parts by a kernel each, at one go.

    Args:
        x: maps (B, C, H, W), on a GPU, in any layout.
        square_w, wide_w, tall_w: depthwise kernels of odd sides, (part, 1, k, k),
            (part, 1, 1, band) and (part, 1, band, 1), of the channels in this order
            after the first C - 3 part, which pass unchanged.
        square_b, wide_b, tall_b: (part,) each, or none of them.

    Shapes: (B, C, H, W) to the same (in autocast's type where it is on), channels_last where x is.
    Raises: FoveateError if the parts do not fit the channels, a side is even, or some but not all
        biases are given.
    Source: inceptionnext (arXiv 2303.16900, section 3.2).
    """
    weights, biases = (square_w, wide_w, tall_w), (square_b, wide_b, tall_b)
    part = square_w.shape[0]
    if any(w.shape[:2] != (part, 1) for w in weights) or 3 * part > x.shape[1]:
        shapes = ", ".join(str(tuple(w.shape)) for w in weights)
        raise FoveateError(
            f"kernels of shapes {shapes} do not fit {x.shape[1]} channels: give three of "
            "(part, 1, kh, kw) with one part for all, and at least three parts of channels"
        )
    if any(side % 2 == 0 for w in weights for side in w.shape[2:]):
        raise FoveateError("a kernel of an even side has no centre: give odd sides")
    if len({bias is None for bias in biases}) == 2:
        raise FoveateError("some of the three biases are missing: give all or none")
    return _forward(*cast_like_autocast(x, *weights, *biases))


@torch.library.custom_op("foveate_triton::inception_mix", mutates_args=())
def _forward(
    x: Tensor,
    square_w: Tensor,
    wide_w: Tensor,
    tall_w: Tensor,
    square_b: Tensor | None,
    wide_b: Tensor | None,
    tall_b: Tensor | None,
) -> Tensor:
    y = new_map(x, x.shape, is_channels_last(x))
    return _mix(x, (square_w, wide_w, tall_w), (square_b, wide_b, tall_b), y, flip=False)


@_forward.register_fake
def _(x, square_w, wide_w, tall_w, square_b, wide_b, tall_b):
    return new_map(x, x.shape, is_channels_last(x))


@torch.library.custom_op("foveate_triton::inception_mix_input_gradient", mutates_args=())
def _input_gradient(
    gradient: Tensor, x: Tensor, square_w: Tensor, wide_w: Tensor, tall_w: Tensor
) -> Tensor:
    y = new_map(x, x.shape, is_channels_last(x))
    return _mix(gradient, (square_w, wide_w, tall_w), (None, None, None), y, flip=True)


@_input_gradient.register_fake
def _(gradient, x, square_w, wide_w, tall_w):
    return new_map(x, x.shape, is_channels_last(x))


def _mix(
    x: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    y: Tensor,
    flip: bool,
) -> Tensor:
    b, channels, high, wide = y.shape
    part = weights[0].shape[0]
    channels_last = is_channels_last(y)
    tile = blocks(part, wide, channels_last)
    same_blocks, part_blocks = (
        triton.cdiv(count, tile["BLOCK_C"]) for count in (channels - 3 * part, part)
    )
    rows, columns = triton.cdiv(high, ROWS), triton.cdiv(wide, tile["BLOCK_W"])
    launch(
        _mixer,
        b * rows * columns * (same_blocks + 3 * part_blocks),
        x,
        as_map(x),
        *(as_filters(*pair, channels_last) for pair in zip(weights, biases, strict=True)),
        as_map(y),
        channels,
        part,
        GEOMETRIES=tuple(_same_size(weight) for weight in weights),
        FLIP=flip,
        ACC=accumulator(x),
        **tile,
    )
    return y


def _same_size(weight: Tensor) -> tuple[tuple[int, ...], ...]:
    """The geometry of a convolution that keeps the map's size."""
    kernel, one = weight.shape[2:], (1, 1)
    return geometry(kernel, one, one, (kernel[0] // 2, kernel[1] // 2), one)


@triton.jit
def _mixer(
    source,
    square,
    wide,
    tall,
    target,
    channels,
    part,
    GEOMETRIES: tl.constexpr,
    FLIP: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    same = channels - 3 * part
    same_blocks = tl.cdiv(same, BLOCK_C)
    part_blocks = tl.cdiv(part, BLOCK_C)
    image, top, block, col = tile_of(
        tl.program_id(0), same_blocks + 3 * part_blocks, target[1], BLOCK_W
    )
    x = of_image(source, image)
    y = of_image(target, image)
    if block < same_blocks:
        c = block * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
        copy_tile(x, y, same, c, top, col)
    else:
        which = (block - same_blocks) // part_blocks
        c = (block - same_blocks) % part_blocks * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
        x = from_channel(x, same + which * part)
        y = from_channel(y, same + which * part)
        if which == 0:
            convolve_tile(x, square, y, part, c, top, col, GEOMETRIES[0], FLIP, ACC)
        elif which == 1:
            convolve_tile(x, wide, y, part, c, top, col, GEOMETRIES[1], FLIP, ACC)
        else:
            convolve_tile(x, tall, y, part, c, top, col, GEOMETRIES[2], FLIP, ACC)


@triton.jit
def from_channel(map, c):
    """The map of the channels from c on."""
    x, size, strides = map
    return x + c * strides[1], size, strides


@triton.jit
def copy_tile(source, target, channels, c, top, col):
    """Copy four rows from `top` on of a tile."""
    mask = (c < channels) & (col < target[1][1])
    y0 = load_row(source, c, top, col, mask, AS_IT_IS)
    y1 = load_row(source, c, top + 1, col, mask, AS_IT_IS)
    y2 = load_row(source, c, top + 2, col, mask, AS_IT_IS)
    y3 = load_row(source, c, top + 3, col, mask, AS_IT_IS)
    store_rows(target, c, top, col, mask, (y0, y1, y2, y3))


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, *weights = inputs[:4]
    ctx.bias_types = [None if bias is None else bias.dtype for bias in inputs[4:]]
    ctx.save_for_backward(x, *weights)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, *weights = ctx.saved_tensors
    gradient = dense(gradient, is_channels_last(x))
    needs_x, *needs = ctx.needs_input_grad
    to_x = _input_gradient(gradient, x, *weights) if needs_x else None
    learns = [needs[i] or needs[3 + i] for i in range(3)]
    sums = _weight_gradients(gradient, x, weights, learns)
    to_weights = [
        None if s is None else s[0].to(w.dtype) for s, w in zip(sums, weights, strict=True)
    ]
    to_biases = [
        None if s is None or kind is None else s[1].to(kind)
        for s, kind in zip(sums, ctx.bias_types, strict=True)
    ]
    return to_x, *to_weights, *to_biases


def _weight_gradients(
    gradient: Tensor, x: Tensor, weights: Sequence[Tensor], learns: Sequence[bool]
) -> list[tuple[Tensor, Tensor] | None]:
    """The gradients of kernels and biases of each part that learns."""
    part = weights[0].shape[0]
    found: list[tuple[Tensor, Tensor] | None] = []
    for i, weight in enumerate(weights):
        here = slice(x.shape[1] - (3 - i) * part, x.shape[1] - (2 - i) * part)
        kernel, stride, _, padding, dilation = _same_size(weight)
        rule = kernel, stride, padding, dilation
        found.append(weight_gradient(gradient[:, here], x[:, here], *rule) if learns[i] else None)
    return found


def _remember_input_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    gradient, _, *weights = inputs
    ctx.save_for_backward(gradient, *weights)


def _backward_input_gradient(ctx: Any, by: Tensor) -> tuple[Tensor | None, ...]:
    """It is linear in the gradient and in the kernels."""
    gradient, *weights = ctx.saved_tensors
    to_gradient = _forward(by, *weights, None, None, None)
    sums = _weight_gradients(gradient, by, weights, [True] * 3)
    to_weights = (s[0].to(w.dtype) for s, w in zip(sums, weights, strict=True) if s is not None)
    return to_gradient, None, *to_weights


_forward.register_autograd(_backward, setup_context=_remember)
_input_gradient.register_autograd(_backward_input_gradient, setup_context=_remember_input_gradient)
