"""Depthwise convolution that keeps the processor's vector units busy, and its twin.

PyTorch's own takes 5 to 50 times as long to train on CPUs, the longer the
larger the kernel. `benchmarks/kernels.py` measures it.
"""

import ctypes
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.kernels import native
from foveate.ops.kernels.autocast import cast_like_autocast

LARGEST = 31
"""The largest side of a kernel."""

SMALL, TINY = 400, 64
"""Pixels of a map up to which it is small, or tiny: see `pays`."""

Pair = tuple[int, int]
NOWHERE = (0, 0, 0, 0)
"""The strides of maps that are not there."""


class Part(ctypes.Structure):
    """Channels of maps that are convolved with a kernel of their own, or handed on."""

    _fields_ = (
        ("x", native.View),
        ("y", native.View),
        ("seen", native.View),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_void_p) for name in ("weight_gradient", "bias_gradient")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "height", "width")),
        *((name, ctypes.c_int64) for name in ("out_height", "out_width")),
        *((name, ctypes.c_int32 * 2) for name in ("kernel", "stride", "pad", "dilation", "stuff")),
        ("turned", ctypes.c_int32),
        ("half", ctypes.c_int32),
    )


def part(
    x: Tensor,
    y: Tensor,
    weight: Tensor | None,
    bias: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> Part:
    """What a kernel does to channels.

    Args:
        x, y: maps in and out, of as many channels; slices of channels will do.
        weight: float32 (C, 1, kernel_h, kernel_w), dense; None hands `x` on.
        bias: float32 (C,), or None.
        stride, padding, dilation: as of a convolution.
    """
    kernel = (0, 0) if weight is None else weight.shape[2:]
    plan = _plan(
        x.shape,
        y.shape,
        (x.stride(), y.stride(), NOWHERE),
        kernel,
        stride,
        padding,
        dilation,
        half=x.dtype == torch.bfloat16,
    )
    part = Part.from_buffer_copy(plan)
    part.x.data, part.y.data = x.data_ptr(), y.data_ptr()
    part.weight, part.bias = native.pointer(weight), native.pointer(bias)
    return part


def back_part(
    g: Tensor,
    gx: Tensor | None,
    x: Tensor,
    weight: Tensor,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
) -> tuple[Part, Tensor, Tensor]:
    """The way back of such a part, and the gradients of weight and bias, which it fills.

    The kernel turned over is moved over `g`, with zeros between its pixels for strides.

    Args:
        g: gradient of what the part gave.
        gx: where the gradient of `x` is written, unless None.
        x, weight: what the part was given.
        stride, padding, dilation: as the part has them.
    """
    kernel = weight.shape[2:]
    plan = _plan(
        g.shape,
        x.shape,
        (g.stride(), NOWHERE if gx is None else gx.stride(), x.stride()),
        kernel,
        (1, 1),
        tuple(d * (k - 1) - p for k, p, d in zip(kernel, padding, dilation, strict=True)),
        dilation,
        stuffing=stride,
        half=g.dtype == torch.bfloat16,
    )
    part = Part.from_buffer_copy(plan)
    part.turned = True
    part.x.data, part.y.data, part.seen.data = g.data_ptr(), native.pointer(gx), x.data_ptr()
    gw, gb = torch.empty_like(weight), weight.new_empty(weight.shape[0])
    part.weight = weight.data_ptr()
    part.weight_gradient, part.bias_gradient = gw.data_ptr(), gb.data_ptr()
    return part, gw, gb


@lru_cache(1024)
def _plan(
    shape: Sequence[int],
    out: Sequence[int],
    strides: tuple[Sequence[int], Sequence[int], Sequence[int]],
    kernel: Sequence[int],
    stride: Pair,
    padding: Sequence[int],
    dilation: Pair,
    *,
    stuffing: Pair = (1, 1),
    half: bool,
) -> Part:
    """All of a part but where its tensors lie.

    It is the same from step to step, and takes longer to make than tiny maps to convolve.
    """
    pairs = {"kernel": kernel, "stride": stride, "pad": padding}
    pairs |= {"dilation": dilation, "stuff": stuffing}
    views = (native.View(None, *steps) for steps in strides)
    return Part(
        *views,
        batch=shape[0],
        channels=shape[1],
        height=shape[2],
        width=shape[3],
        out_height=out[2],
        out_width=out[3],
        half=half,
        **{name: (ctypes.c_int32 * 2)(*pair) for name, pair in pairs.items()},
    )


def convolve(parts: Sequence[Part]) -> None:
    """Convolve several groups of channels of the same maps in one go."""
    native.call("foveate_depthwise", (Part * len(parts))(*parts), len(parts))


def convolve_back(parts: Sequence[Part]) -> None:
    """The same on the way back; the gradients of weights and biases are filled."""
    native.call("foveate_depthwise_back", (Part * len(parts))(*parts), len(parts))


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
) -> Tensor:
    """A depthwise convolution: by Foveate's kernel where it can run, else by PyTorch.

    Args:
        x: maps (B, C, H, W), float32 or bfloat16 for the kernel.
        weight: (C, 1, kernel_h, kernel_w); odd sides up to 31 for the kernel.
        bias: (C,), or None.
        stride, padding, dilation: of both axes, or of each.

    Returns: (B, C, H', W'), in the layout of `x`.
    Raises: FoveateError if the weight is not one kernel a channel.
    """
    if weight.ndim != 4 or weight.shape[1] != 1 or weight.shape[0] != x.shape[1]:
        raise FoveateError(
            f"a weight of shape {tuple(weight.shape)} is not one kernel for each of "
            f"{x.shape[1]} channels: give ({x.shape[1]}, 1, height, width)"
        )
    strides, pads, dilations = _pair(stride), _pair(padding), _pair(dilation)
    if fits(x, weight, bias, pads, dilations) and pays(x, weight, bias, strides):
        x, weight, bias = cast_like_autocast(x, weight, bias)
        return _Depthwise.apply(native.dense(x), weight, bias, strides, pads, dilations)
    return F.conv2d(x, weight, bias, strides, pads, dilations, groups=x.shape[1])


def fits(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Pair, dilation: Pair) -> bool:
    """Whether the kernel can take these: odd sides, padding within the kernel, plain tensors."""
    return (
        native.able(x, weight, bias)
        and x.ndim == 4
        and x.numel() > 0
        and all(
            side % 2 and side <= LARGEST and 0 <= pad <= spread * (side - 1)
            for side, pad, spread in zip(weight.shape[2:], padding, dilation, strict=True)
        )
    )


def pays(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair) -> bool:
    """Whether the kernel was measured to be faster than PyTorch's (`benchmarks/kernels.py`).

    Gradients pay, but for small kernels that stride in channels_last. A forward
    pass alone does not over tiny maps, unless it is a band over contiguous ones. In
    channels_last it does not for a wide band over small maps, nor, where registers
    hold half a line of the cache, for few taps or a wide band over any.
    """
    height, width = weight.shape[2:]
    few, band = height * width <= 9, height == 1 < width
    apart = x.is_contiguous()
    if max(stride) > 1 and few and not apart:
        return False
    if native.learns(x, weight, bias):
        return True
    pixels = x.shape[2] * x.shape[3]
    if apart:
        return band or pixels > TINY
    if native.level() == "x86-64-v3" and (few or band):
        return False
    return pixels > (SMALL if band else TINY)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation):
        kernel = weight.float().contiguous()
        sides = [
            (size + 2 * pad - spread * (side - 1) - 1) // step + 1
            for size, side, step, pad, spread in zip(
                x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True
            )
        ]
        if min(sides) < 1:
            raise FoveateError(
                f"maps of {x.shape[2]} x {x.shape[3]} pixels are smaller than the kernel of "
                f"{weight.shape[2]} x {weight.shape[3]}: pad them, or give larger ones"
            )
        y = native.like(x, (*x.shape[:2], *sides))
        offset = None if bias is None else bias.float().contiguous()
        how = {"stride": stride, "padding": padding, "dilation": dilation}
        convolve([part(x, y, kernel, offset, **how)])
        ctx.save_for_backward(x, weight)
        ctx.how, ctx.bias_dtype = how, None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx, *gradients):
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            found = slow_gradients(gradients[0], x, weight, wanted, **ctx.how)
        else:
            found = fast_gradients(gradients[0], x, weight, wanted, **ctx.how)
        return *found, None, None, None


def fast_gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight and bias by the kernel; those that nobody wants are None."""
    g = native.dense(g)
    gx = native.like(g, x.shape) if wanted[0] else None
    kernel = weight.float().contiguous()
    how = {"stride": stride, "padding": padding, "dilation": dilation}
    back, gw, gb = back_part(g, gx, x, kernel, **how)
    if wanted[1] or wanted[2]:
        convolve_back([back])
    else:
        convolve([back])
    dtype = weight.dtype
    return gx, gw.to(dtype) if wanted[1] else None, gb.to(dtype) if wanted[2] else None


def slow_gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    wanted: tuple[bool, bool, bool],
    *,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same by PyTorch, which can derive them once more."""
    channels = weight.shape[0]
    return torch.ops.aten.convolution_backward(
        g, x, weight, [channels], stride, padding, dilation, False, (0, 0), channels, wanted
    )


def _pair(value: int | Sequence[int]) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


class DepthwiseConv2d(nn.Conv2d):
    """`nn.Conv2d` with a kernel for each channel, computed by `depthwise_conv2d`.

    Args:
        dim: channels.
        kernel_size, stride, padding, dilation, bias: as of `nn.Conv2d`; by
            default the padding keeps the size.

    Shapes: (B, dim, H, W) to (B, dim, H', W').
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | None = None,
        dilation: int | Pair = 1,
        bias: bool = True,
    ) -> None:
        sides, spreads = _pair(kernel_size), _pair(dilation)
        if padding is None:
            padding = (spreads[0] * (sides[0] // 2), spreads[1] * (sides[1] // 2))
        super().__init__(dim, dim, sides, stride, padding, spreads, groups=dim, bias=bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv_forward(self, input, weight, bias)


def conv_forward(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What a depthwise `nn.Conv2d` does to maps."""
    assert not isinstance(conv.padding, str)
    return depthwise_conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation)  # pyright: ignore[reportArgumentType]
