"""A loss on every exit, and the last one as the teacher of those before.

Source: dyn_perceiver (arXiv 2306.11248, section 3.4). The authors' code is under MIT.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.train.loop import Training


@implements("dyn_perceiver")
class ExitLosses(Ingredient):
    """Add the cross-entropy of each early exit, and its divergence from the last exit.

    Args:
        shares: of the early exits' cross-entropies; the last one's counts once.
        distil: share of the divergences.
        temperature: at which the last exit teaches.

    Raises: FoveateError, when training starts, for a network without so many exits.
    """

    def __init__(
        self,
        shares: Sequence[float] = (0.5, 0.5, 1.0),
        distil: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        self.shares, self.distil, self.temperature = tuple(shares), distil, temperature
        self._said: dict[str, Tensor] = {}

    def start(self, training: Training) -> None:
        backbone = training.model.backbone
        exits = getattr(backbone, "exits", ("head.fc",))
        if len(exits) != len(self.shares) + 1:
            raise FoveateError(
                f"{type(backbone).__name__} has {len(exits)} exits, and there are shares for "
                f"{len(self.shares)} before the last: give one for each"
            )
        if self._said:
            return
        for name in exits[:-1]:
            self._said[name] = torch.empty(0)
            backbone.get_submodule(name).register_forward_hook(partial(self._keep, name))

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        smoothing = training.recipe.label_smoothing
        heat = self.temperature
        teacher = F.softmax(logits.detach() / heat, dim=1)
        for share, said in zip(self.shares, self._said.values(), strict=True):
            said = said.to(logits.dtype)
            loss = loss + share * F.cross_entropy(said, targets, label_smoothing=smoothing)
            apart = F.kl_div(F.log_softmax(said / heat, dim=1), teacher, reduction="batchmean")
            loss = loss + self.distil * heat**2 * apart
        return loss

    def _keep(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._said[name] = output
