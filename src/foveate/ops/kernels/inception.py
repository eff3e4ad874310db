"""The Inception mixer in one pass over memory: no split, no concatenation."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.ops.kernels import native
from foveate.ops.kernels.autocast import cast_like_autocast
from foveate.ops.kernels.depthwise import (
    TINY,
    Part,
    back_part,
    convolve,
    convolve_back,
    fits,
    part,
    slow_gradients,
)


def inception_mix(x: Tensor, *weights_and_biases: Tensor) -> Tensor:
    """Hand the first channels on, and convolve the last groups with a kernel each.

    Args:
        x: maps (B, C, H, W).
        weights_and_biases: a weight (c, 1, kernel_h, kernel_w) with odd sides
            and a bias (c,) for each group in turn; the groups are the last
            channels, and keep the maps' size.

    Returns: (B, C, H, W).
    """
    weights, biases = weights_and_biases[::2], weights_and_biases[1::2]
    able = all(fits(x, w, b, same(w), (1, 1)) for w, b in zip(weights, biases, strict=True))
    if able and pays(x, *weights_and_biases):
        x, *rest = cast_like_autocast(x, *weights_and_biases)
        return _Inception.apply(native.dense(x), *rest)
    return plain_inception_mix(x, *weights_and_biases)


def pays(x: Tensor, *weights_and_biases: Tensor) -> bool:
    """Whether the kernel was measured to be faster than its twin.

    It always is, but for a forward pass alone over tiny maps with channels apart.
    """
    tiny = x.shape[2] * x.shape[3] <= TINY
    return native.learns(x, *weights_and_biases) or not (tiny and x.is_contiguous())


def plain_inception_mix(x: Tensor, *weights_and_biases: Tensor) -> Tensor:
    """The readable twin of `inception_mix`."""
    weights, biases = weights_and_biases[::2], weights_and_biases[1::2]
    widths = [w.shape[0] for w in weights]
    passed, *groups = x.split([x.shape[1] - sum(widths), *widths], dim=1)
    mixed = [
        F.conv2d(group, w, b, padding=same(w), groups=w.shape[0])
        for group, w, b in zip(groups, weights, biases, strict=True)
    ]
    return torch.cat((passed, *mixed), dim=1)


def same(weight: Tensor) -> tuple[int, int]:
    """The padding that keeps a map's size."""
    return weight.shape[2] // 2, weight.shape[3] // 2


class _Inception(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *weights_and_biases):
        y = torch.empty_like(x)
        weights = [w.float().contiguous() for w in weights_and_biases[::2]]
        biases = [b.float().contiguous() for b in weights_and_biases[1::2]]
        ranges = _ranges(x, weights)
        parts = [
            part(x[:, at], y[:, at], w, b, padding=same(w))
            for w, b, at in zip(weights, biases, ranges, strict=True)
        ]
        convolve([*_handed_on(x, y, ranges), *parts])
        ctx.save_for_backward(x, *weights_and_biases[::2])
        return y

    @staticmethod
    def backward(ctx, *gradients):
        x, *weights = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _derivable(gradients[0], x, weights)
        g = native.dense(gradients[0])
        gx = torch.empty_like(g) if ctx.needs_input_grad[0] else None
        ranges, parts, found = _ranges(x, weights), [], []
        kernels = [w.float().contiguous() for w in weights]
        for w, at in zip(kernels, ranges, strict=True):
            to = None if gx is None else gx[:, at]
            back, *shares = back_part(g[:, at], to, x[:, at], w, padding=same(w))
            parts.append(back)
            found += shares
        convolve_back([*_handed_on(g, gx, ranges), *parts])
        return gx, *(t.to(weights[0].dtype) for t in found)


def _handed_on(x: Tensor, y: Tensor | None, ranges: list[slice]) -> list[Part]:
    """The first channels as a part, if they are any and wanted."""
    passed = ranges[0].start
    return [part(x[:, :passed], y[:, :passed], None)] if passed and y is not None else []


def _ranges(x: Tensor, weights: list[Tensor]) -> list[slice]:
    ends = [x.shape[1]]
    for w in reversed(weights):
        ends.insert(0, ends[0] - w.shape[0])
    return [slice(a, b) for a, b in pairwise(ends)]


def _derivable(g: Tensor, x: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
    """The gradients by PyTorch, which can derive them once more."""
    ranges = _ranges(x, weights)
    inputs, rest = [g[:, : ranges[0].start]], []
    for w, at in zip(weights, ranges, strict=True):
        how = {"stride": (1, 1), "padding": same(w), "dilation": (1, 1)}
        gx, gw, gb = slow_gradients(g[:, at], x[:, at], w, (True, True, True), **how)
        inputs, rest = [*inputs, gx], [*rest, gw, gb]
    return torch.cat(inputs, dim=1), *rest
