"""Gradients of few bits: rounded at random, so that they are right in the mean.

Source: dorefa (arXiv 1606.06160, section 2.5 and algorithm 1), and the DoReFa-Net example of
tensorpack (Apache-2.0), its authors' code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.low_bits import LowBitLayer
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.data import Batch
    from foveate.train.loop import Training


@implements("dorefa")
class LowBitGradients(Ingredient):
    """Round the gradients of what layers of few bits put out, before anything is made of them.

    So the products of the way back, those for weights and those for inputs, have few bits on
    both sides. What the optimiser sees of weights stays in float.

    Args:
        bits: 1 to 16.
        noise: round at random. Without it gradients are biased, and learning suffers.

    Raises: FoveateError if bits is not among those, or, when a training starts, if no layer of
        the model has few bits.
    """

    def __init__(self, bits: int = 6, noise: bool = True) -> None:
        if bits not in range(1, 17):
            raise FoveateError(f"bits is {bits}: give 1 to 16")
        self.bits, self.noise = bits, noise
        self._handles: list[RemovableHandle] = []

    def start(self, training: Training) -> None:
        modules = training.model.modules()
        self._layers = [module for module in modules if isinstance(module, LowBitLayer)]
        if not self._layers:
            raise FoveateError("no layer of the model has few bits: apply DoReFa to it first")

    def batch(self, training: Training, batch: Batch) -> Batch:
        def passed(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda g: quantise_gradient(g, self.bits, self.noise))

        self._handles = [layer.register_forward_hook(passed) for layer in self._layers]
        return batch

    def gradients(self, training: Training) -> None:
        for handle in self._handles:
            handle.remove()


@implements("dorefa")
def quantise_gradient(gradient: Tensor, bits: int, noise: bool = True) -> Tensor:
    """Round each sample's gradient to 2^bits numbers from minus its largest magnitude to that.

    These are 2 max|g| (q / (2^bits - 1) - 1 / 2) for whole q. With noise that is uniform over a
    step, each number's mean is what it was; zero is no such number, and comes out as one of the
    two beside it.

    Args:
        gradient: (B, ...).
        bits: k.
        noise: add it before rounding, from torch's own generator.
    """
    g, steps = gradient.float(), 2**bits - 1
    largest = g.abs().flatten(1).amax(1).view(-1, *[1] * (g.ndim - 1))
    place = g / (2 * largest.clamp(min=torch.finfo(g.dtype).tiny)) + 0.5
    if noise:
        place = place + (torch.rand_like(place) - 0.5) / steps
    rounded = (place.clamp(0, 1) * steps).round() / steps
    return (2 * largest * (rounded - 0.5)).to(gradient.dtype)
