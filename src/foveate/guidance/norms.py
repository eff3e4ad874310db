"""Batch norms told anew what comes to them, once channels before them are gone.

A norm subtracts the mean that it saw in training; where channels that made part of that mean are
gone, what is left is off. A pass over some images mends that, and trains nothing. Few images tell
statistics badly, so where little is gone the old ones serve better.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from foveate.surgery.channels.remove import evaluating
from foveate.train.gpusq_vit import divergence

Net = TypeVar("Net", bound=nn.Module)


def renormed(model: Net, like: nn.Module, batches: list[Tensor]) -> Net:
    """A copy with new statistics, or the model itself where its answers are nearer as they are.

    Args:
        model, like: an edited model, and the one whose answers it should give.
        batches: that both take, each of all kinds of images.
    """
    other = copy.deepcopy(model)
    renorm(other, batches)
    return min((model, other), key=lambda one: _distance(one, like, batches))


@torch.no_grad()
def renorm(model: nn.Module, batches: list[Tensor]) -> None:
    """Set the statistics of all batch norms to averages over batches, in place."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    with evaluating(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average
            norm.train()
        for batch in batches if norms else ():
            model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def _distance(model: nn.Module, like: nn.Module, batches: list[Tensor]) -> float:
    with evaluating(model), evaluating(like):
        return sum(float(divergence(model(batch), like(batch), 1.0)) for batch in batches)
