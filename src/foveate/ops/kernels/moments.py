"""Mean and variance of each channel of maps, and maps scaled and shifted by channel.

Batch norms and their ways back are made of these: each is one pass over memory.
"""

import ctypes

import torch
from torch import Tensor

from foveate.ops.kernels import native


class _Sums(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "g", "middle", "sums")),
        *((name, ctypes.c_int64) for name in ("pixels", "channels")),
    )


class _Scaled(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "g", "out")),
        *((name, ctypes.c_void_p) for name in ("middle", "x_scale", "g_scale", "offset")),
        *((name, ctypes.c_int64) for name in ("pixels", "channels")),
    )


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and (biased) variance of each channel over images and pixels.

    Args:
        x: maps (B, C, H, W); channels_last and float32 for the kernel.

    Returns: the maps again, with (C,) and (C,). Who goes on with these maps has gradients
        through them and through the moments added up in one pass.
    """
    if fits(x):
        return _Moments.apply(x)  # pyright: ignore[reportReturnType]
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return x, mean, variance


def fits(x: Tensor) -> bool:
    """Whether the kernels can take maps: plain, float32, channels_last."""
    return (
        native.able(x)
        and x.ndim == 4
        and x.dtype == torch.float32
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of each channel of maps that fit, without gradients."""
    first = x[0, :, 0, 0]
    sums = channel_sums(x, first) / (x.numel() // x.shape[1])
    return (first + sums[0]).float(), (sums[1] - sums[0].square()).float()


def channel_sums(x: Tensor, middle: Tensor, g: Tensor | None = None) -> Tensor:
    """Sums over each channel of g, and of g times x less its middle: float64 (2, C).

    Args:
        x, g: maps (B, C, H, W) that fit; without g it is x less its middle.
        middle: float32 (C,).
    """
    sums = torch.empty(2, x.shape[1], dtype=torch.float64)
    pointers = (native.pointer(t) for t in (x, g, middle, sums))
    job = _Sums(*pointers, x.numel() // x.shape[1], x.shape[1])
    native.call("foveate_channel_sums", ctypes.byref(job))
    return sums


def scale_channels(
    x: Tensor,
    middle: Tensor,
    x_scale: Tensor,
    offset: Tensor,
    g: Tensor | None = None,
    g_scale: Tensor | None = None,
) -> Tensor:
    """(x - middle) * x_scale + offset, plus g * g_scale if they are given, channel by channel.

    Args:
        x, g: maps (B, C, H, W) that fit.
        middle, x_scale, offset, g_scale: (C,), of any floating type.
    """
    out = torch.empty_like(x)
    given = (middle, x_scale, g_scale, offset)
    factors = [None if t is None else t.float().contiguous() for t in given]
    pointers = (native.pointer(t) for t in (x, g, out, *factors))
    job = _Scaled(*pointers, x.numel() // x.shape[1], x.shape[1])
    native.call("foveate_scale_channels", ctypes.byref(job))
    return out


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        mean, variance = moments(x)
        ctx.save_for_backward(x, mean)
        return x.view_as(x), mean, variance

    @staticmethod
    def backward(ctx, *gradients):
        x, mean = ctx.saved_tensors
        g, along_mean, along_variance = gradients
        pixels = x.numel() // x.shape[1]
        slope = along_variance * (2 / pixels)
        offset = along_mean / pixels
        if not torch.is_grad_enabled() and fits(g):
            return scale_channels(x, mean, slope, offset, g, torch.ones_like(slope))
        middle, slope, offset = (t.view(1, -1, 1, 1) for t in (mean, slope, offset))
        return g + torch.addcmul(offset, x - middle, slope)
