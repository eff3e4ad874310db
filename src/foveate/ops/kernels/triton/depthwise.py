"""Depthwise convolution and its gradients.

The input gradient is the forward kernel over the output's gradient: kernel turned by half a turn,
and stride and spacing of the input exchanged. By the data sheet of an H100 (3.35 TB/s, 33 T
multiply-adds/s in float32) 32x96x56x56 in float32 takes 23 us of memory traffic, and 14 us of
arithmetic at 7x7, 280 us at 31x31: small kernels are bound by memory, from some 11x11 on by
arithmetic and by the first-level cache, for which `tiles` keeps rows in registers.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from foveate.errors import FoveateError
from foveate.ops.kernels.autocast import cast_like_autocast
from foveate.ops.kernels.triton.tiles import (
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
    new_map,
    of_image,
    tile_of,
)
from foveate.ops.kernels.triton.weight_gradient import weight_gradient


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Tensor:
    """What torch.nn.functional.conv2d gives with as many groups as channels.

    Args:
        x: maps (B, C, H, W), on a GPU, in any layout.
        weight: (C, 1, kh, kw) of any floating type.
        bias: (C,).
        stride, padding, dilation: (down, across), in pixels.

    Shapes: (B, C, H, W) to (B, C, H', W') in x's type (in autocast's where it is on), and
        channels_last where x is.
    Raises: FoveateError if the kernels do not fit the channels, or the map the kernels.
    """
    if weight.shape[:2] != (x.shape[1], 1):
        raise FoveateError(
            f"depthwise kernels of shape {tuple(weight.shape)} do not fit {x.shape[1]} channels: "
            f"give ({x.shape[1]}, 1, kh, kw)"
        )
    if min(_output_size(x, weight, stride, padding, dilation)) < 1:
        raise FoveateError(
            f"a map of {x.shape[2]}x{x.shape[3]} pixels is smaller than its kernel of "
            f"{weight.shape[2]}x{weight.shape[3]}: give more padding"
        )
    return _forward(*cast_like_autocast(x, weight, bias), stride, padding, dilation)


def _output_size(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    high, wide = (
        (x.shape[i + 2] + 2 * padding[i] - dilation[i] * (weight.shape[i + 2] - 1) - 1) // stride[i]
        + 1
        for i in range(2)
    )
    return high, wide


@torch.library.custom_op("foveate_triton::depthwise_conv2d", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    size = _output_size(x, weight, stride, padding, dilation)
    y = new_map(x, (*x.shape[:2], *size), is_channels_last(x))
    return _convolve(x, weight, bias, y, stride, (1, 1), padding, dilation, flip=False)


@_forward.register_fake
def _(x, weight, bias, stride, padding, dilation):
    size = _output_size(x, weight, stride, padding, dilation)
    return new_map(x, (*x.shape[:2], *size), is_channels_last(x))


@torch.library.custom_op("foveate_triton::depthwise_input_gradient", mutates_args=())
def _input_gradient(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    kernel = weight.shape[2:]
    around = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    y = new_map(x, x.shape, is_channels_last(x))
    return _convolve(gradient, weight, None, y, (1, 1), stride, around, dilation, flip=True)


@_input_gradient.register_fake
def _(gradient, x, weight, stride, padding, dilation):
    return new_map(x, x.shape, is_channels_last(x))


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    stride: Sequence[int],
    up: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    flip: bool,
) -> Tensor:
    """Write into y the convolution of a map x that stands `up` pixels apart."""
    b, channels, high, wide = y.shape
    tile = blocks(channels, wide, is_channels_last(y))
    rows, columns = triton.cdiv(high, ROWS), triton.cdiv(wide, tile["BLOCK_W"])
    launch(
        _convolution,
        b * rows * columns * triton.cdiv(channels, tile["BLOCK_C"]),
        x,
        as_map(x),
        as_filters(weight, bias, is_channels_last(y)),
        as_map(y),
        channels,
        GEOMETRY=geometry(weight.shape[2:], stride, up, padding, dilation),
        FLIP=flip,
        ACC=accumulator(x),
        **tile,
    )
    return y


@triton.jit
def _convolution(
    source,
    filters,
    target,
    channels,
    GEOMETRY: tl.constexpr,
    FLIP: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    image, top, block, col = tile_of(
        tl.program_id(0), tl.cdiv(channels, BLOCK_C), target[1], BLOCK_W
    )
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)[:, None]
    source = of_image(source, image)
    target = of_image(target, image)
    convolve_tile(source, filters, target, channels, c, top, col, GEOMETRY, FLIP, ACC)


def _remember(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, bias, *ctx.geometry = inputs
    ctx.bias_type = None if bias is None else bias.dtype
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    gradient = dense(gradient, is_channels_last(x))
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    to_x = to_weight = to_bias = None
    if needs_x:
        to_x = _input_gradient(gradient, x, weight, *ctx.geometry)
    if needs_weight or needs_bias:
        sums = weight_gradient(gradient, x, weight.shape[2:], *ctx.geometry)
        to_weight = sums[0].to(weight.dtype)
        to_bias = sums[1].to(ctx.bias_type) if needs_bias else None
    return to_x, to_weight, to_bias, None, None, None


_forward.register_autograd(_backward, setup_context=_remember)


# Both gradients are linear in each of their two maps, so their gradients are these three again.


def _remember_input_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    gradient, _, weight, *ctx.geometry = inputs
    ctx.save_for_backward(gradient, weight)


def _backward_input_gradient(ctx: Any, by: Tensor) -> tuple[Tensor | None, ...]:
    gradient, weight = ctx.saved_tensors
    to_gradient = _forward(by, weight, None, *ctx.geometry)
    to_weight, _ = weight_gradient(gradient, by, weight.shape[2:], *ctx.geometry)
    return to_gradient, None, to_weight.to(weight.dtype), None, None, None


def _remember_weight_gradient(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    gradient, x, _, *ctx.geometry = inputs
    ctx.save_for_backward(gradient, x)


def _backward_weight_gradient(
    ctx: Any, by_weight: Tensor, by_bias: Tensor
) -> tuple[Tensor | None, ...]:
    gradient, x = ctx.saved_tensors
    to_gradient = _forward(x, by_weight, by_bias, *ctx.geometry)
    to_x = _input_gradient(gradient, x, by_weight, *ctx.geometry)
    return to_gradient, to_x, None, None, None, None


_input_gradient.register_autograd(_backward_input_gradient, setup_context=_remember_input_gradient)
weight_gradient.register_autograd(
    _backward_weight_gradient, setup_context=_remember_weight_gradient
)
