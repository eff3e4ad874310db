"""Layer norm over the channels of contiguous maps, without moving them about.

Where maps are channels_last PyTorch's layer norm is as fast as memory, and does it.
"""

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.ops.kernels import native


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "g", "out", "weight", "bias")),
        *((name, ctypes.c_void_p) for name in ("weight_gradient", "bias_gradient")),
        *((name, ctypes.c_void_p) for name in ("means", "scales")),
        *((name, ctypes.c_int64) for name in ("batch", "channels", "pixels")),
        ("eps", ctypes.c_float),
        ("half", ctypes.c_int32),
    )

    @classmethod
    def of(cls, x: Tensor, eps: float, **tensors: Tensor | None) -> "_Job":
        return cls(
            x=x.data_ptr(),
            batch=x.shape[0],
            channels=x.shape[1],
            pixels=x.shape[2] * x.shape[3],
            eps=eps,
            half=x.dtype == torch.bfloat16,
            **{name: native.pointer(t) for name, t in tensors.items()},
        )


def layer_norm_channels(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Layer norm over the channels of each pixel.

    Args:
        x: maps (B, C, H, W).
        weight, bias: (C,) each; the bias may be None.
        eps: added to the variance.

    Returns: (B, C, H, W), in the layout of `x`.
    """
    if native.able(x, weight, bias) and x.ndim == 4 and x.numel() > 0 and x.is_contiguous():
        return _ChannelNorm.apply(x, weight, bias, eps)
    return plain_layer_norm_channels(x, weight, bias, eps)


def plain_layer_norm_channels(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """The readable twin of `layer_norm_channels`."""
    y = F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, eps)
    return y.permute(0, 3, 1, 2)


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        y, learns = torch.empty_like(x), any(ctx.needs_input_grad)
        scale = weight.float().contiguous()
        offset = None if bias is None else bias.float().contiguous()
        means, scales = torch.empty(2, *x.shape[::2], x.shape[3]) if learns else (None, None)
        job = _Job.of(x, eps, out=y, weight=scale, bias=offset, means=means, scales=scales)
        native.call("foveate_layer_norm", ctypes.byref(job))
        ctx.save_for_backward(x, weight, means, scales)
        ctx.eps, ctx.has_bias = eps, bias is not None
        return y

    @staticmethod
    def backward(ctx, *gradients):
        x, weight, means, scales = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_derivable(gradients[0], x, weight, ctx.eps, ctx.has_bias), None
        g = gradients[0].contiguous()
        gx = torch.empty_like(x)
        kernel = weight.float().contiguous()
        gw, gb = torch.empty_like(kernel), torch.empty_like(kernel)
        wanted = {"out": gx, "weight_gradient": gw, "bias_gradient": gb}
        job = _Job.of(x, ctx.eps, g=g, weight=kernel, means=means, scales=scales, **wanted)
        native.call("foveate_layer_norm_back", ctypes.byref(job))
        return gx, gw.to(weight.dtype), gb.to(weight.dtype) if ctx.has_bias else None, None


def _derivable(
    g: Tensor, x: Tensor, weight: Tensor, eps: float, has_bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients in PyTorch's operations, which can be derived once more."""
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    scale = torch.rsqrt(variance + eps)
    normal = (x - mean) * scale
    inner = g * weight.view(1, -1, 1, 1)
    along = (inner * normal).mean(1, keepdim=True)
    gx = scale * (inner - inner.mean(1, keepdim=True) - normal * along)
    return gx, (g * normal).sum((0, 2, 3)), g.sum((0, 2, 3)) if has_bias else None
