"""Batch norm over the statistics of the batch, and its way back, in two passes over maps each.

PyTorch's takes up to twice as long in channels_last where channels are few. Where they are many,
where statistics are known already, and where maps are contiguous, PyTorch is as fast as memory.
"""

import torch
from torch import Tensor, nn

from foveate.ops.kernels import native
from foveate.ops.kernels.moments import channel_sums, fits, moments, scale_channels

LEAST, FEW = 1 << 19, 64
"""Numbers in maps from which on, and channels up to which, the kernel was measured to be faster
than PyTorch's (`benchmarks/kernels.py`)."""


def batch_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Maps with channels of mean 0 and variance 1, scaled and shifted.

    Args:
        x: maps (B, C, H, W); channels_last and float32 for the kernel.
        weight, bias: (C,) each, or None for 1 and 0.
        eps: added to the variance.

    Returns: (B, C, H, W); mean and biased variance (C,) of each channel, without gradients.
    """
    if _able(x, weight, bias):
        return _BatchNorm.apply(x, weight, bias, eps)  # pyright: ignore[reportReturnType]
    return plain_batch_norm(x, weight, bias, eps)


def plain_batch_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """The readable twin of `batch_norm`."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    y = (x - _by_channel(mean)) * _by_channel(torch.rsqrt(variance + eps))
    y = y if weight is None else y * _by_channel(weight)
    return y if bias is None else y + _by_channel(bias), mean.detach(), variance.detach()


def follow(norm: nn.BatchNorm2d, mean: Tensor, variance: Tensor, pixels: int) -> None:
    """Let a module's running statistics move towards those of a batch, if it is in training.

    Args:
        norm: which may have no running statistics.
        mean, variance: (C,) of the batch; the variance biased.
        pixels: how many, in all images.
    """
    if not norm.training or not norm.track_running_stats or norm.running_mean is None:
        return
    assert norm.running_var is not None
    share = norm.momentum
    with torch.no_grad():
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if share is None:
                share = 1 / float(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, share or 0.0)
        norm.running_var.lerp_(variance * (pixels / max(1, pixels - 1)), share or 0.0)


def batch_norm_forward(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`nn.BatchNorm2d.forward`, through the kernel where it normalises by the batch."""
    by_batch = norm.training or norm.running_mean is None
    if not (by_batch and pays(x, norm.weight, norm.bias) and _is_normal(norm, x)):
        return nn.BatchNorm2d.forward(norm, x)
    y, mean, variance = batch_norm(x, norm.weight, norm.bias, norm.eps)
    follow(norm, mean, variance, x.numel() // x.shape[1])
    return y


def pays(x: Tensor, *affine: Tensor | None) -> bool:
    """Whether the kernel can run, and was measured to be faster than PyTorch's: large maps of few
    channels, in training."""
    may = _able(x, *affine) and native.learns(x, *affine)
    return may and x.numel() >= LEAST and x.shape[1] <= FEW


def _able(x: Tensor, *affine: Tensor | None) -> bool:
    return fits(x) and native.able(*affine)


def _is_normal(norm: nn.BatchNorm2d, x: Tensor) -> bool:
    """Whether maps are such as PyTorch does not refuse: of its channels, with pixels to compare."""
    return x.shape[1] == norm.num_features and x.numel() > x.shape[1]


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        mean, variance = moments(x)
        slope = torch.rsqrt(variance + eps)
        slope = slope if weight is None else slope * weight
        y = scale_channels(x, mean, slope, torch.zeros_like(mean) if bias is None else bias)
        ctx.save_for_backward(x, weight, bias, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx, *gradients):
        g, (x, weight, bias, mean, variance) = gradients[0], ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_derivable(g, x, weight, bias, ctx.eps), None
        g = g.contiguous(memory_format=torch.channels_last)
        sums, pixels = channel_sums(x, mean, g), x.numel() // x.shape[1]
        scale = torch.rsqrt(variance.double() + ctx.eps)
        gw, gb = sums[1] * scale, sums[0]
        slope = scale if weight is None else scale * weight
        x_slope = -slope * scale * gw / pixels
        gx = scale_channels(x, mean, x_slope, -slope * gb / pixels, g, slope)
        of_weight = None if weight is None else gw.to(weight.dtype)
        return gx, of_weight, None if bias is None else gb.to(bias.dtype), None


def _derivable(
    g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor | None, ...]:
    """The gradients from the twin, which can be derived once more."""
    y = plain_batch_norm(x, weight, bias, eps)[0]
    wanted = [t for t in (x, weight, bias) if t is not None and t.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
    return tuple(
        next(found) if t is not None and t.requires_grad else None for t in (x, weight, bias)
    )


def _by_channel(values: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1)
