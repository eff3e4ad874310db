"""Distillation from the dense network: labels, its softened answers, and its features.

Source: gpusq_vit (arXiv 2305.10727, section 3.2): the same mixed loss while masks are on and
while fake quantisation is.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.layers import matches
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.data import Batch
    from foveate.train.loop import Training


@implements("gpusq_vit")
class DistilFromDense(Ingredient):
    """Mix the loss by labels with what a teacher answers and what it sees.

    Args:
        teacher: the model as it was before its edits; a copy of it is used.
        points: patterns of the names of blocks whose outputs are compared, in both models;
            none, and features are left out.
        hard, soft, features: weights of the loss by labels, of the divergence of softened
            answers, and of the features' distance, each block's against the teacher's own size.
        temperature: that answers are softened by.

    Raises: FoveateError that names the field, or the block that one of the models lacks.
    """

    def __init__(
        self,
        teacher: nn.Module,
        points: tuple[str, ...] = (),
        hard: float = 1.0,
        soft: float = 1.0,
        features: float = 1.0,
        temperature: float = 2.0,
    ) -> None:
        if temperature <= 0:
            raise FoveateError(f"temperature is {temperature}: give more than 0")
        for name, value in (("hard", hard), ("soft", soft), ("features", features)):
            if value < 0:
                raise FoveateError(f"{name} is {value}: give 0 or more")
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.points, self.temperature = points, temperature
        self.hard, self.soft, self.features = hard, soft, features
        self._images: list[Tensor] = []
        self._seen: dict[str, Tensor] = {}
        self._wanted: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def start(self, training: Training) -> None:
        self.teacher.to(training.world.device)
        ours, theirs = dict(training.model.named_modules()), dict(self.teacher.named_modules())
        self._blocks: list[tuple[str, nn.Module, nn.Module]] = []
        for pattern in self.points:
            found = [name for name in ours if matches(name, (pattern,))]
            if not found or any(name not in theirs for name in found):
                raise FoveateError(f"points names {pattern!r}, which both models must have")
            self._blocks += [(name, ours[name], theirs[name]) for name in found]

    def batch(self, training: Training, batch: Batch) -> Batch:
        images = self._images

        def take(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            images[:] = inputs

        self._handles = [training.model.register_forward_pre_hook(take)]
        for name, block, twin in self._blocks:
            self._handles.append(_watch(block, self._seen, name))
            self._handles.append(_watch(twin, self._wanted, name))
        return batch

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        with torch.no_grad():
            answers = self.teacher(*self._images).float()
        mixed = self.hard * loss + self.soft * divergence(logits, answers, self.temperature)
        for name, wanted in self._wanted.items():
            mixed = mixed + self.features * distance(self._seen[name], wanted)
        return mixed

    def gradients(self, training: Training) -> None:
        for handle in self._handles:
            handle.remove()
        for shelf in (self._images, self._seen, self._wanted):
            shelf.clear()


@implements("gpusq_vit")
def divergence(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of softened answers, times the temperature squared.

    Args:
        logits, answers: (B, K), of the student and of the teacher.
        temperature: that both are divided by.

    Returns: in nats, the mean over images.
    """
    ours, theirs = (F.log_softmax(x / temperature, 1) for x in (logits, answers))
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


@implements("gpusq_vit")
def distance(seen: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared distance of features, against the mean square of those wanted."""
    return F.mse_loss(seen.float(), wanted.float()) / wanted.float().square().mean()


def _watch(block: nn.Module, shelf: dict[str, Tensor], name: str) -> RemovableHandle:
    """Put what a block computes on a shelf."""

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shelf[name] = output

    return block.register_forward_hook(keep)
