"""A loss on the overview alone, so that what guides the closer look knows what it sees.

Source: overlock (arXiv 2502.20087, section 3). The authors' code is under Apache-2.0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones.overlock import OverLoCK, OverviewStage
from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.train.loop import Training


@implements("overlock")
class OverviewLoss(Ingredient):
    """Add the cross-entropy of the overview's own classifier.

    Args:
        share: of that loss, in what is added.

    Raises: FoveateError, when training starts, for a network whose overview has no classifier.
    """

    def __init__(self, share: float = 0.4) -> None:
        self.share = share
        self._stage: OverviewStage | None = None
        self._seen: Tensor | None = None

    def start(self, training: Training) -> None:
        backbone = training.model.backbone
        stage = backbone.stages[2] if isinstance(backbone, OverLoCK) else None
        if not isinstance(stage, OverviewStage) or stage.auxiliary is None:
            raise FoveateError(
                f"{type(backbone).__name__} has no classifier of an overview: take an OverLoCK "
                "with auxiliary=True"
            )
        if self._stage is None:
            self._stage = stage
            stage.overview.register_forward_hook(self._keep)

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        assert self._stage is not None
        assert self._stage.auxiliary is not None
        found = self._stage.auxiliary(self._seen)
        smoothing = training.recipe.label_smoothing
        return loss + self.share * F.cross_entropy(found, targets, label_smoothing=smoothing)

    def _keep(self, stage: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen = output
