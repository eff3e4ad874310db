"""The deployed form of a model's own parts, as an edit."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foveate.ops.merge import Mergeable, merge
from foveate.surgery.edit import Covered, Edit, Images, Plan


@dataclass(frozen=True)
class Fold(Edit):
    """Have every part that knows its deployed form take it, as `foveate.ops.merge.merge` does.

    Branches and norms become one kernel, mixtures plain layers, RIFormer's affines their norms'
    own, and fake quantisation integers. `Merge` finds such things in any network, and gives a
    graph.

    Raises: FoveateError if no part knows another form than it has.
    """

    looks_at = "nothing"

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        folded = dict(merge(copy.deepcopy(model)).named_modules())
        coverage = []
        for name, part in model.named_modules():
            held = _held(part)
            if isinstance(part, Mergeable):
                changes = name not in folded or not _same(held, _held(folded[name]))
                why = (
                    "deployed form" if changes else "left because it has its deployed form already"
                )
                coverage.append(Covered(name, type(part).__name__, changes, why))
        return {}, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return merge(model)


def _held(part: nn.Module) -> dict[str, Tensor]:
    """Every number that a part computes with, by name."""
    return dict(part.named_parameters()) | dict(part.named_buffers())


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )
