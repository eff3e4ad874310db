"""Channels that answer to little go, and how many of them, a target decides by trying.

Source: activation_structured_pruning (Adaptive Activation-based Structured Pruning, 2022): its
attention scores, its adaptive policies, and weight rewinding.
"""

import copy
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.surgery.chains import Chain, chains
from foveate.surgery.channels.groups import Group
from foveate.surgery.channels.remove import Remove, evaluating
from foveate.surgery.edit import Covered, Images, Plan
from foveate.surgery.layers import matches
from foveate.surgery.lineage import lineage, remember
from foveate.surgery.replay import replay


@implements("activation_structured_pruning")
@dataclass(frozen=True, kw_only=True)
class RemoveInattentive(Remove):
    """Remove channels whose activations, over images, are far below the mean of their group.

    Args:
        threshold: share of the group's mean attention below which a channel goes.
        share: of every group's channels that goes instead, the least attentive; or None.
        power: that magnitudes are raised to before their mean over images and places.
        only, skip: patterns of groups' names.

    Raises: FoveateError that names the field.
    """

    looks_at = "images"

    threshold: float = 0.1
    share: float | None = None
    power: float = 1.0
    only: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("threshold", "power"):
            if getattr(self, name) <= 0:
                raise FoveateError(f"{name} is {getattr(self, name)}: give more than 0")
        if self.share is not None and not 0 < self.share < 1:
            raise FoveateError(f"share is {self.share}: give more than 0 and less than 1, or None")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        images = list(self.batches(data))
        scores = attention(model, images, self.power)

        def choose(groups: list[Group]) -> dict[str, list[int]]:
            wanted = [g for g in groups if matches(g.name, self.only)]
            told = {g.name: _of_group(g, scores) for g in wanted if not matches(g.name, self.skip)}
            return {name: self._least(own) for name, own in told.items() if own is not None}

        return self.decide_by(model, images[0], choose)

    def _least(self, scores: np.ndarray) -> list[int]:
        """Channels that go; the most attentive one stays in any case."""
        order = np.argsort(scores, kind="stable")
        if self.share is not None:
            return sorted(order[: min(round(self.share * len(order)), len(order) - 1)].tolist())
        below = scores < self.threshold * scores.mean()
        below[order[-1]] = False
        return below.nonzero()[0].tolist()


@implements("activation_structured_pruning")
@torch.no_grad()
def attention(model: nn.Module, images: list[Tensor], power: float = 1.0) -> dict[str, np.ndarray]:
    """Mean of |activation|^power over images and places, for each channel that a layer makes.

    The activation is taken behind the layer's batch norm and ReLU, where it has them.

    Args:
        model: run in evaluation mode; its mode is restored.
        images: batches.
        power: of magnitudes.

    Returns: float64 (channels,), by the layer's name.
    """
    found = chains(model, images[0])
    sums: dict[str, Any] = defaultdict(float)
    seen: dict[str, int] = defaultdict(int)
    handles = []
    for name, chain in found.items():

        def add(
            module: nn.Module, inputs: Any, y: Tensor, name: str = name, chain: Chain = chain
        ) -> None:
            y = y if chain.top is None else y.clamp(0, chain.top)
            channels = y if isinstance(chain.layer, nn.Linear) else y.movedim(1, -1)
            told = channels.double().abs().pow(power).flatten(0, -2)
            sums[name] += told.sum(0).cpu().numpy()
            seen[name] += len(told)

        handles.append(model.get_submodule(chain.norm or name).register_forward_hook(add))
    try:
        with evaluating(model):
            for batch in images:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sums[name] / seen[name] for name in sums}


def _of_group(group: Group, scores: dict[str, np.ndarray]) -> np.ndarray | None:
    """The mean attention to each channel over the layers that make it, each by its own mean."""
    told, makers = np.zeros(len(group)), 0
    for name, axis in group.weights:
        layer = name.rpartition(".")[0]
        if axis == 0 and name.endswith("weight") and layer in scores:
            own = scores[layer] / max(scores[layer].mean(), 1e-30)
            told += [own[slices[name, 0]].mean() for slices in group.channels]
            makers += 1
    return told / makers if makers else None


# ---------------------------------------------------------------- how much goes


@dataclass(frozen=True)
class Round:
    """A try: what was removed, and whether it was kept.

    Attributes:
        threshold: that it was tried with.
        accuracy: after training, in [0, 1].
        params, macs: of what was tried, the latter for an image; 0 if nothing could go.
        kept: whether the target allows it.
    """

    threshold: float
    accuracy: float
    params: int
    macs: int
    kept: bool


@implements("activation_structured_pruning")
def prune_to_target(
    trained: nn.Module,
    early: nn.Module,
    images: list[Tensor],
    train: Callable[[nn.Module], float],
    *,
    target: Literal["accuracy", "params", "macs"],
    least: float,
    edit: RemoveInattentive | None = None,
    step: float = 0.1,
    rounds: int = 10,
) -> tuple[nn.Module, list[Round]]:
    """Remove, rewind, train, and again with a higher threshold, as far as a target allows.

    Each try begins with the weights of early training, cut as the lineage says, and is
    trained. What violates the target is rolled back, and tried with half the step.

    Args:
        trained: where it begins; stays as it is.
        early: the same network as it was early in its training; stays as it is.
        images: batches, for attention.
        train: trains a network in place, and gives its accuracy in [0, 1].
        target, least: the `accuracy` that must stay; or the share of `params` or `macs`
            that must stay at least, which is come as near to as rounds allow.
        edit: how channels are chosen; its threshold is where tries begin.
        step: that the threshold is raised by at first.
        rounds: tries at most.

    Returns: the last network that was kept, and all rounds.
    Raises: FoveateError that names the field, or if no try could be kept.
    """
    if target not in ("accuracy", "params", "macs"):
        raise FoveateError(f"target is {target!r}: choose accuracy, params or macs")
    if not 0 <= least <= 1:
        raise FoveateError(f"least is {least}: give 0 to 1")
    edit = edit or RemoveInattentive()
    first, best, history = count(trained, images[0][:1]), trained, []
    threshold, raised, why = edit.threshold, step, ""
    while len(history) < rounds:
        try:
            cut, _ = replace(edit, threshold=threshold).apply(best, images)
        except FoveateError as error:  # such as that nothing is below the threshold yet
            history.append(Round(threshold, float("nan"), 0, 0, False))
            threshold, why = threshold + raised, f" ({error})"
            continue
        found = count(cut, images[0][:1])
        shares = {"params": found.params / first.params, "macs": found.macs / first.macs}
        fits = target == "accuracy" or shares[target] >= least
        accuracy = float("nan")
        if fits:
            cut = rewound(cut, early)
            accuracy = train(cut)
            fits = target != "accuracy" or accuracy >= least
        history.append(Round(threshold, accuracy, found.params, found.macs, fits))
        if fits:
            best, threshold = cut, threshold + raised
        else:
            raised /= 2
            threshold -= raised
    if best is trained:
        raise FoveateError(
            f"no try of {rounds} kept {least} of {target}{why}: lower it, or begin with another "
            "threshold"
        )
    return best, history


@implements("activation_structured_pruning")
def rewound(pruned: nn.Module, early: nn.Module) -> nn.Module:
    """A pruned network with the weights that it had early in its training.

    Args:
        pruned: by edits of its lineage.
        early: the network before them, with those weights; stays as it is.
    """
    steps = lineage(pruned)
    again = replay(copy.deepcopy(early), steps[len(lineage(early)) :])
    remember(again, steps)
    return again.train(pruned.training)
