"""The deployed form of a model's own parts, as an edit."""

from dataclasses import dataclass

from torch import nn

from foveate.ops.merge import Mergeable, merge
from foveate.surgery.edit import Covered, Edit, Images, Plan


@dataclass(frozen=True)
class Fold(Edit):
    """Have every part that knows its deployed form take it, as `foveate.ops.merge.merge` does.

    Branches and norms become one kernel, mixtures plain layers, and fake
    quantisation integers. `Merge` finds such things in any network, and gives a graph.
    """

    looks_at = "nothing"

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        parts = [(name, m) for name, m in model.named_modules() if isinstance(m, Mergeable)]
        return {}, [Covered(name, type(m).__name__, True, "deployed form") for name, m in parts]

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return merge(model)
