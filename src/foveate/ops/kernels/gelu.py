"""GELU in any dense layout; PyTorch's leaves its fast path where maps are channels_last."""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.ops.kernels import native


class _Job(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("g", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("half", ctypes.c_int32),
    )


def gelu(x: Tensor) -> Tensor:
    """GELU by the normal distribution's function, to 3e-7 of float64's.

    Args:
        x: of any shape.

    Returns: the same shape and layout.
    """
    if native.able(x) and x.numel() > 0 and _is_dense(x):
        return _Gelu.apply(x)
    return F.gelu(x)


def _is_dense(x: Tensor) -> bool:
    return x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last))


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return _run(x, None)

    @staticmethod
    def backward(ctx, *gradients):
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return torch.ops.aten.gelu_backward(gradients[0], x)
        g = torch.empty_like(x).copy_(gradients[0]) if _differ(gradients[0], x) else gradients[0]
        return _run(x, g)


def _differ(g: Tensor, x: Tensor) -> bool:
    return g.stride() != x.stride() or g.dtype != x.dtype


def _run(x: Tensor, g: Tensor | None) -> Tensor:
    out = torch.empty_like(x)
    half = x.dtype == torch.bfloat16
    job = _Job(x.data_ptr(), native.pointer(g), out.data_ptr(), x.numel(), half)
    native.call("foveate_gelu", ctypes.byref(job))
    return out
