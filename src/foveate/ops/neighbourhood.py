"""A weighted sum over each pixel's neighbours, with weights of its own: what dynamic kernels share.

Involution, LSNet's aggregation, TVConv and ContMix make such weights in ways of
their own, and mix with them here.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.errors import FoveateError


def mix_neighbours(
    x: Tensor, weights: Tensor, kernel: int, stride: int = 1, interleaved: bool = False
) -> Tensor:
    """Sum the kernel x kernel neighbours of each place, weighted by that place's own weights.

    Neighbours beyond the edge count as zeros. Taps are added one after the
    other, so that no unfolded copy of the map, kernel^2 times its size, is made.

    Args:
        x: (B, C, H, W).
        weights: (B or 1, G, kernel^2, H / stride, W / stride), where each of G
            groups of C / G channels in a row shares its weights.
        kernel: odd side of the neighbourhood.
        stride: distance between the places.
        interleaved: channel c belongs to group c % G, and not to one of C / G in a row.

    Returns: (B, C, H / stride, W / stride).
    Raises: FoveateError if the shapes do not fit.
    """
    groups, taps, high, wide = weights.shape[1:]
    if x.shape[1] % groups or taps != kernel * kernel or kernel % 2 == 0:
        raise FoveateError(
            f"weights {tuple(weights.shape)} do not fit {x.shape[1]} channels and a kernel of "
            f"{kernel}: give (B, groups, kernel^2, H, W) with an odd kernel"
        )
    pad = kernel // 2
    split = (-1, groups) if interleaved else (groups, -1)
    padded = F.pad(x, (pad, pad, pad, pad)).unflatten(1, split)
    out: Tensor | None = None
    for tap in range(taps):
        top, left = divmod(tap, kernel)
        seen = padded[
            ..., top : top + stride * (high - 1) + 1 : stride,
            left : left + stride * (wide - 1) + 1 : stride,
        ]  # fmt: skip
        weight = weights[:, None, :, tap] if interleaved else weights[:, :, tap, None]
        out = weight * seen if out is None else torch.addcmul(out, weight, seen)
    assert out is not None
    return out.flatten(1, 2)


def compare_neighbours(x: Tensor, y: Tensor, groups: int, kernel: int) -> Tensor:
    """Products of each place's vectors with those of its neighbours: local attention's scores.

    Args:
        x, y: (B, C, H, W).
        groups: heads; channels of a head lie in a row.
        kernel: odd side of the neighbourhood.

    Returns: (B, groups, kernel^2, H, W); zeros where the neighbour lies beyond the edge.
    """
    high, wide = x.shape[-2:]
    pad = kernel // 2
    padded = F.pad(y, (pad, pad, pad, pad)).unflatten(1, (groups, -1))
    x = x.unflatten(1, (groups, -1))
    scores = [
        (x * padded[..., top : top + high, left : left + wide]).sum(2)
        for top in range(kernel)
        for left in range(kernel)
    ]
    return torch.stack(scores, dim=2)


def mix_neighbours_unfolded(x: Tensor, weights: Tensor, kernel: int, stride: int = 1) -> Tensor:
    """The readable twin of `mix_neighbours`: unfold, multiply, sum."""
    (b, c), (groups, taps, high, wide) = x.shape[:2], weights.shape[1:]
    patches = F.unfold(x, kernel, padding=kernel // 2, stride=stride)
    patches = patches.view(b, groups, c // groups, taps, high, wide)
    return (weights[:, :, None] * patches).sum(3).flatten(1, 2)
