"""Filters that training with feature flow regularisation has made superfluous are removed.

Source: ffr (Feature Flow Regularization: Improving Structured Sparsity in Deep Neural Networks,
2021).
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.channels.groups import Group
from foveate.surgery.channels.remove import Remove
from foveate.surgery.layers import matches


@implements("ffr")
@dataclass(frozen=True, kw_only=True)
class RemoveFaint(Remove):
    """Remove channels whose filters have a norm far below the largest of their group.

    Best after a training with `FeatureFlow`, and before one without.

    Args:
        threshold: share of the largest norm below which a channel goes.
        share: of every group's channels that goes instead, those of the least norm; or None.
        only, skip: patterns of groups' names.

    Raises: FoveateError if threshold or share is no share.
    """

    threshold: float = 0.01
    share: float | None = None
    only: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("threshold", "share"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise FoveateError(f"{name} is {value}: give more than 0 and less than 1")

    def choose(self, model: nn.Module, groups: list[Group]) -> dict[str, list[int]]:
        gone = {}
        for group in groups:
            if matches(group.name, self.only) and not matches(group.name, self.skip):
                gone[group.name] = self._faint(filter_norms(model, group))
        return gone

    def _faint(self, norms: np.ndarray) -> list[int]:
        if self.share is None:
            return (norms < self.threshold * norms.max()).nonzero()[0].tolist()
        stay = max(1, len(norms) - round(self.share * len(norms)))
        return sorted(np.argsort(norms, kind="stable")[: len(norms) - stay].tolist())


@implements("ffr")
def filter_norms(model: nn.Module, group: Group) -> np.ndarray:
    """L2 norms of the filters that make each channel, times the scales of the norms behind them.

    A batch norm undoes its filter's own norm, and its scale stands for it then.

    Args:
        model: whose group it is.
        group: of `groups`.

    Returns: float64 (channels,).
    """
    held = dict(model.named_parameters(remove_duplicate=False))
    filters, scales = np.zeros(len(group)), np.zeros(len(group))
    has_scale = False
    for name, axis in group.weights:
        if axis != 0 or name not in held or not name.endswith("weight"):
            continue
        weight = held[name].detach().double().cpu()
        squares = (
            weight.square() if weight.ndim == 1 else weight.flatten(1).square().sum(1)
        ).numpy()
        found = np.array([squares[slices[name, 0]].sum() for slices in group.channels])
        if weight.ndim == 1:
            scales, has_scale = scales + found, True
        else:
            filters += found
    return np.sqrt(filters * scales if has_scale else filters)
