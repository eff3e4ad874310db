"""Stop where the network is sure enough, so that a budget of work is kept on average.

Source: dyn_perceiver (arXiv 2306.11248, section 3.4), whose thresholds are found as in MSDNet
(arXiv 1703.09844, section 4). The authors' code is under MIT.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.data import Batches, Split
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.vision import VisionModel

RATIOS = np.geomspace(1e-3, 1e3, 241)
DAMPING = (0.85, 1.0, 0.5, 1.0)
"""The authors' factors on the shares of a Dynamic Perceiver's exits: the network's own, the third,
is rarely worth it."""
Steps = Sequence[Callable[..., tuple[tuple[Tensor, ...], Tensor]]]


@runtime_checkable
class HasExits(Protocol):
    """A network that says how to come from one exit to the next."""

    def steps(self) -> Steps:
        """Each takes the state that the one before gave, the first the images, and gives a state,
        whose tensors have an image a row, and logits."""
        ...


def geometric_shares(ratio: float, damping: Sequence[float]) -> np.ndarray:
    """Share of the images that each exit is to keep, float64 (E,), with sum 1.

    Args:
        ratio: of each exit's share to that before.
        damping: factors on the shares of the exits; what a factor takes away goes to the later.
    """
    powers = np.arange(len(damping)) * np.log(ratio)
    shares = np.exp(powers - powers.max())
    shares /= shares.sum()
    for k, factor in enumerate(damping[:-1]):
        shares[k] *= factor
        later = shares[k + 1 :]
        later *= (1 - shares[: k + 1].sum()) / later.sum()
    return shares


def find_thresholds(confidence: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Thresholds at which exits keep such shares of held-out images, float64 (E,).

    Args:
        confidence: highest probability at each exit of each image, (E, N).
        shares: (E,).
    """
    exits, images = confidence.shape
    thresholds = np.full(exits, np.inf)
    thresholds[-1] = -np.inf
    gone = np.zeros(images, dtype=bool)
    for k in range(exits - 1):
        left = np.sort(confidence[k, ~gone])[::-1]
        wanted = int(images * shares[k])
        if 0 < wanted <= len(left):
            thresholds[k] = left[wanted - 1]
        gone |= confidence[k] >= thresholds[k]
    return thresholds


def taken_exits(confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """The first exit that is sure enough, int64 (N,), of confidences (E, N)."""
    return (confidence >= thresholds[:, None]).argmax(0)


@dataclass(frozen=True)
class Stopped:
    """What came of a batch: logits (B, K) and the exit that gave them, int64 (B,)."""

    logits: Tensor
    exits: Tensor


@implements("dyn_perceiver")
class EarlyExit(nn.Module):
    """A model that stops at the first exit whose highest probability reaches its threshold.

    Images that stop leave the batch: nothing more is computed for them. The model
    is put into evaluation mode.

    Args:
        model: whose backbone has exits.
        thresholds: one for each exit; what the last one says is always taken.

    Shapes: images as the model takes them to logits (B, K).
    Raises: FoveateError if the backbone has no exits, or not as many.
    """

    def __init__(self, model: VisionModel, thresholds: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        found = len(_steps(model))
        if len(thresholds) != found:
            raise FoveateError(f"{len(thresholds)} thresholds for {found} exits: give one for each")
        self.thresholds = [float(threshold) for threshold in thresholds]
        self.eval()

    @classmethod
    def for_budget(
        cls, model: VisionModel, split: Split, macs: float, damping: Sequence[float] | None = None
    ) -> Self:
        """Thresholds that keep an average budget, by held-out images.

        Of all geometric distributions over the exits, the one is taken that
        spends the most of the budget.

        Args:
            model: whose backbone has exits.
            split: held-out images; targets are not looked at.
            macs: multiply-adds an image, on average.
            damping: as `geometric_shares` takes it; by default the authors' for
                four exits, and none for others.

        Raises: FoveateError if not even the first exit fits into the budget.
        """
        costs = exit_macs(model)
        if macs < costs[0]:
            raise FoveateError(
                f"the first exit costs {costs[0]:.3g} multiply-adds, and the budget is {macs:.3g}: "
                "give more"
            )
        confidence = exit_confidence(model, split)
        if damping is None:
            damping = DAMPING if len(costs) == len(DAMPING) else (1.0,) * len(costs)
        first = np.full(len(costs), -np.inf)
        best, spent = first, costs[0]
        for ratio in RATIOS:
            thresholds = find_thresholds(confidence, geometric_shares(ratio, damping))
            mean = costs[taken_exits(confidence, thresholds)].mean()
            if spent < mean <= macs:
                best, spent = thresholds, mean
        return cls(model, best.tolist())

    def forward(self, images: Any) -> Tensor:
        return self.run(images).logits

    def run(self, images: Any) -> Stopped:
        """Logits, and at which exit each image stopped."""
        state: tuple[Tensor, ...] = (self.model.prepare(images),)
        steps = _steps(self.model)
        waiting = torch.arange(len(state[0]), device=state[0].device)
        logits: Tensor | None = None
        exits = torch.zeros_like(waiting)
        for k, (step, threshold) in enumerate(zip(steps, self.thresholds, strict=True)):
            state, said = step(*state)
            logits = said.new_zeros(len(exits), said.shape[1]) if logits is None else logits
            sure = said.float().softmax(1).amax(1) >= threshold
            if k + 1 == len(steps):
                sure = torch.ones_like(sure)
            logits[waiting[sure]], exits[waiting[sure]] = said[sure], k
            if sure.all():
                break
            waiting, state = waiting[~sure], tuple(part[~sure] for part in state)
        assert logits is not None
        return Stopped(logits, exits)


class _UpTo(nn.Module):
    """A model as far as one of its exits."""

    def __init__(self, model: VisionModel, last: int) -> None:
        super().__init__()
        self.model, self.last = model, last
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        return exit_logits(self.model, images, self.last)[-1]


def exit_logits(model: VisionModel, images: Any, last: int | None = None) -> list[Tensor]:
    """What the exits say, in order, as far as exit `last`: each (B, K)."""
    state: tuple[Tensor, ...] = (model.prepare(images),)
    found = []
    for step in _steps(model)[: None if last is None else last + 1]:
        state, said = step(*state)
        found.append(said)
    return found


def exit_macs(model: VisionModel) -> np.ndarray:
    """Counted multiply-adds of one image that stops at each exit, float64 (E,)."""
    side = model.preprocess.size
    image = torch.zeros(1, 3, side, side, device=model.mean.device)
    exits = range(len(_steps(model)))
    return np.array([count(_UpTo(model, k), image).macs for k in exits], dtype=np.float64)


@torch.inference_mode()
def exit_confidence(model: VisionModel, split: Split, batch_size: int = 256) -> np.ndarray:
    """Highest probability that each exit gives to each image of a split, float64 (E, N)."""
    was_training = model.training
    model.eval()
    shape = model.preprocess
    batches = Batches(split=split, batch_size=batch_size, size=shape.size, crop=shape.crop)
    found = [
        torch.stack(
            [
                said.float().softmax(1).amax(1).cpu()
                for said in exit_logits(model, batch.images.to(model.mean.device))
            ]
        )
        for batch in batches.epoch(0)
    ]
    model.train(was_training)
    return torch.cat(found, dim=1).double().numpy()


def _steps(model: VisionModel) -> Steps:
    backbone = model.backbone
    if not isinstance(backbone, HasExits):
        raise FoveateError(
            f"{type(backbone).__name__} has no exits but its last: take a network with early "
            "exits, as dyn_perceiver_resnet_mini32"
        )
    return backbone.steps()
