"""A convolution without any lowering: shifted inputs, weighted and added up.

Source: sliding_window_conv (Snytsar 2023, sections 2 and 3). The readable twin
is torch's own conv2d.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from foveate.catalog import implements


@implements("sliding_window_conv")
def sliding_conv2d(x: Tensor, weight: Tensor, padding: int = 0) -> Tensor:
    """Sum, over the places of the kernel, of the shifted input times that place's weights.

    Args:
        x: (B, C, H, W).
        weight: (K, C, kernel, kernel), or (C, 1, kernel, kernel) for a
            depthwise convolution.

    Returns: (B, K, H', W'), equal to torch's conv2d with stride 1.
    """
    x = F.pad(x, (padding,) * 4)
    high, wide = (n - k + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
    depthwise = weight.shape[1] == 1 and weight.shape[0] == x.shape[1]
    out = x.new_zeros(x.shape[0], weight.shape[0], high, wide)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            shifted = x[:, :, i : i + high, j : j + wide]
            if depthwise:
                out.addcmul_(shifted, weight[:, 0, i, j].view(1, -1, 1, 1))
            else:
                out += torch.einsum("bchw,kc->bkhw", shifted, weight[:, :, i, j])
    return out


@implements("sliding_window_conv")
def sliding_sum(x: Tensor, window: int) -> Tensor:
    """Sums over a window along the last axis in about log2(window) additions.

    Args:
        x: (..., N).
        window: 1 to N.

    Returns: (..., N - window + 1).
    """
    total, covered, power = None, 0, x  # power holds sums over 2 ** k numbers
    size = 1
    while covered < window:
        if window & size:
            part = power[..., covered : covered + x.shape[-1] - window + 1]
            total = part if total is None else total + part
            covered += size
        if covered < window:
            power = power[..., :-size] + power[..., size:]
        size *= 2
    assert total is not None
    return total
