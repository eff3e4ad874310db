"""Batch norms folded into the layers before them, which remember what the norms knew.

Source: quant_whitepaper_qualcomm (arXiv 2106.08295, sections 2.3.1 and 3.3).
"""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.surgery.chains import lift_norm


def fold_norm(model: nn.Module, name: str, norm: str | None) -> Any:
    """Fold a layer's batch norm into it, in place, and give it a bias in any case.

    A layer that had a norm keeps, as buffers `expected_mean` and `expected_deviation`
    (outputs,), how its outputs are distributed: the norm's shift and the size of its scale.

    Args:
        name: of the layer.
        norm: of the norm, or None.

    Returns: the layer.
    """
    layer: Any = model.get_submodule(name)
    lifted: Any = lift_norm(model, norm)
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    if lifted is None:
        return layer
    with torch.no_grad():
        scale = torch.ones_like(lifted.running_mean) if lifted.weight is None else lifted.weight
        shift = torch.zeros_like(scale) if lifted.bias is None else lifted.bias
        factor = scale / (lifted.running_var + lifted.eps).sqrt()
        layer.bias.copy_(shift + (layer.bias - lifted.running_mean) * factor)
        layer.weight.mul_(factor.view(-1, *[1] * (layer.weight.ndim - 1)))
        layer.register_buffer("expected_mean", shift.detach().clone())
        layer.register_buffer("expected_deviation", scale.detach().abs().clone())
    return layer


def expected(layer: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of a layer's outputs before its activation, if it remembers them."""
    mean, deviation = (getattr(layer, f"expected_{part}", None) for part in ("mean", "deviation"))
    if mean is None or deviation is None or len(mean) != len(layer.weight):  # pyright: ignore
        return None
    return mean, deviation  # pyright: ignore[reportReturnType]
