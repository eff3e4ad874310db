"""The tail of a block in one pass: norm, 1x1, GELU, 1x1, residual.

The hidden activations, four times as large as the maps, stay in the caches. The
way back computes them again where channels are few, and else finds them kept.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.ops.kernels import native

RECOMPUTED = 64
"""Input channels up to which hidden activations are computed again rather than kept."""


class _Job(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "residual", "keep", "w1", "b1", "w2", "b2", "out", "hidden_kept")
        ),
        *((name, ctypes.c_void_p) for name in ("g", "gx", "gw1", "gb1", "gw2", "gb2")),
        *(
            (name, ctypes.c_int64)
            for name in ("images", "pixels", "channels", "hidden", "outputs", "splits")
        ),
        ("eps", ctypes.c_float),
        ("norm", ctypes.c_int32),
    )


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    residual: Tensor | None = None,
    keep: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """residual + keep * (w2 gelu(w1 norm(x) + b1) + b2), pixel by pixel.

    An affine norm and a layer scale belong in the weights: see `tail`.

    Args:
        x: maps (B, C, H, W), float32 for the kernel.
        w1, b1: (hidden, C), (hidden,).
        w2, b2: (outputs, hidden), (outputs,).
        residual: maps (B, outputs, H, W) to add, or None.
        keep: (B,) factors of the branch, as stochastic depth draws them, or None.
        eps: of a layer norm over channels without weights, or None for no norm.

    Returns: (B, outputs, H, W), channels_last where the kernel ran.
    """
    if fits(x, w1, b1, w2, b2, residual, keep):
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        weights = (t.contiguous() for t in (w1, b1, w2, b2))
        return _Mlp.apply(x, *weights, residual, keep, eps)
    return plain_mlp(x, w1, b1, w2, b2, residual=residual, keep=keep, eps=eps)


def plain_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    residual: Tensor | None = None,
    keep: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """The readable twin of `mlp`."""
    rows = x.permute(0, 2, 3, 1)
    if eps is not None:
        rows = F.layer_norm(rows, rows.shape[-1:], eps=eps)
    y = F.linear(F.gelu(F.linear(rows, w1, b1)), w2, b2).permute(0, 3, 1, 2)
    if keep is not None:
        y = y * keep.view(-1, 1, 1, 1)
    return y if residual is None else residual + y


def fits(x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel can take these: plain float32 tensors, no autocast."""
    return (
        native.able(x, *others)
        and x.ndim == 4
        and x.numel() > 0
        and all(t is None or t.dtype == torch.float32 for t in (x, *others))
        and not torch.is_autocast_enabled("cpu")
    )


class _Mlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, b1, w2, b2, residual, keep, eps):
        weights = w1, b1, w2, b2
        shape = (x.shape[0], w2.shape[0], *x.shape[2:])
        out = torch.empty(shape, memory_format=torch.channels_last)
        job = _job(x, weights, keep, eps)
        job.residual, job.out = native.pointer(residual), out.data_ptr()
        hidden = None
        if x.shape[1] > RECOMPUTED and any(ctx.needs_input_grad):
            hidden = torch.empty(job.pixels, job.hidden)
            job.hidden_kept = hidden.data_ptr()
        native.call("foveate_mlp", ctypes.byref(job))
        ctx.save_for_backward(x, *weights, keep, hidden)
        ctx.eps, ctx.has_residual = eps, residual is not None
        return out

    @staticmethod
    def backward(ctx, *gradients):
        g = gradients[0]
        if torch.is_grad_enabled():
            found = _derivable(ctx.saved_tensors, ctx.eps, g)
        else:
            found = _gradients(ctx.saved_tensors, ctx.eps, g)
        return *found, g if ctx.has_residual else None, None, None


def _job(x: Tensor, weights: Sequence[Tensor], keep: Tensor | None, eps: float | None) -> _Job:
    w1, b1, w2, b2 = weights
    return _Job(
        x=x.data_ptr(),
        w1=w1.data_ptr(),
        b1=b1.data_ptr(),
        w2=w2.data_ptr(),
        b2=b2.data_ptr(),
        keep=native.pointer(keep),
        images=x.shape[0],
        pixels=x.shape[0] * x.shape[2] * x.shape[3],
        channels=x.shape[1],
        hidden=w1.shape[0],
        outputs=w2.shape[0],
        splits=torch.get_num_threads(),
        eps=eps or 0.0,
        norm=eps is not None,
    )


def _gradients(saved: tuple, eps: float | None, g: Tensor) -> tuple[Tensor, ...]:
    """Of x, w1, b1, w2 and b2 by the kernel."""
    x, w1, b1, w2, b2, keep, hidden = saved
    g = g.contiguous(memory_format=torch.channels_last)
    gx, turned = torch.empty_like(x), torch.empty(w1.shape[::-1])
    gb1, gw2, gb2 = torch.empty_like(b1), torch.empty_like(w2), torch.empty_like(b2)
    job = _job(x, (w1, b1, w2, b2), keep, eps)
    job.g, job.gx, job.gw1, job.gb1 = (t.data_ptr() for t in (g, gx, turned, gb1))
    job.gw2, job.gb2, job.hidden_kept = gw2.data_ptr(), gb2.data_ptr(), native.pointer(hidden)
    native.call("foveate_mlp_back", ctypes.byref(job))
    return gx, turned.T, gb1, gw2, gb2


def _derivable(saved: tuple, eps: float | None, g: Tensor) -> tuple[Tensor | None, ...]:
    """The same from the twin, which can be derived once more."""
    x, w1, b1, w2, b2, keep, _ = saved
    y = plain_mlp(x, w1, b1, w2, b2, keep=keep, eps=eps)
    inputs = [t for t in (x, w1, b1, w2, b2) if t.requires_grad]
    found = iter(torch.autograd.grad(y, inputs, g, create_graph=True))
    return tuple(next(found) if t.requires_grad else None for t in (x, w1, b1, w2, b2))
