"""Parameters and multiply-adds, counted where the work is dispatched."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Count:
    """Parameters, and multiply-adds of one forward pass (a FLOP count is twice that)."""

    params: int
    macs: int


@torch.inference_mode()
def count(model: nn.Module, images: Tensor) -> Count:
    """Count a model's parameters and the multiply-adds of its matrix products and convolutions.

    Args:
        model: its mode is restored.
        images: what it is called with.
    """
    was_training = model.training
    model.eval()
    counter = FlopCounterMode(display=False)
    with counter:
        model(images)
    model.train(was_training)
    return Count(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
