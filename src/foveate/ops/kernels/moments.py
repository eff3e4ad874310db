"""Mean and variance of each channel of maps in one reading, with a way back of one more."""

import ctypes

import torch
from torch import Tensor

from foveate.ops.kernels import native


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "mean", "variance")),
        *((name, ctypes.c_int64) for name in ("pixels", "channels")),
    )


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel over images and pixels.

    Args:
        x: maps (B, C, H, W); channels_last and float32 for the kernel.

    Returns: (C,) and (C,).
    """
    if (
        native.able(x)
        and x.dtype == torch.float32
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return _Moments.apply(x)  # pyright: ignore[reportReturnType]
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return mean, variance


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        mean, variance = torch.empty(x.shape[1]), torch.empty(x.shape[1])
        pixels = x.numel() // x.shape[1]
        pointers = (t.data_ptr() for t in (x, mean, variance))
        job = _Job(*pointers, pixels, x.shape[1])
        native.call("foveate_moments", ctypes.byref(job))
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx, *gradients):
        x, mean = ctx.saved_tensors
        slope = gradients[1] * (2 * x.shape[1] / x.numel())
        offset = gradients[0] * (x.shape[1] / x.numel()) - slope * mean
        return torch.addcmul(offset.view(1, -1, 1, 1), x, slope.view(1, -1, 1, 1))
