"""Edits of the graph of operations: what comes out is that graph, and its plan is it, too."""

import copy
from typing import ClassVar

from torch import Tensor, fx, nn

from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.graphs import capture
from foveate.surgery.written_graph import keep_all, read, written
from foveate.vision import VisionModel


class GraphEdit(Edit):
    """An edit that captures a network's graph and changes it. Subclasses write `change`.

    The edited model is a torch.fx.GraphModule that takes any batch size; a
    VisionModel stays one, and its backbone is the graph.
    """

    looks_at = "shapes"
    refuses: ClassVar[dict[str, str]] = {
        "integers": "its integers are made from weights in each pass; merge before",
    }

    def apply(self, model: nn.Module, data: Images = None) -> tuple[nn.Module, list[Covered]]:
        self.demand_weights(model)
        network, images = model, next(self.batches(data))
        if isinstance(model, VisionModel):
            network, images = model.backbone, model.prepare(images)
        graph = capture(network, images)
        coverage = self.change(graph, images)
        self.demand_change(model, coverage)
        plan = {"graph": written(keep_all(graph))}
        edited = self.rebuild(copy.deepcopy(model), plan).train(model.training)
        held = edited.backbone if isinstance(edited, VisionModel) else edited
        held.load_state_dict(graph.state_dict())
        self.note(plan, model, edited)
        return edited, coverage

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        graph = read(plan["graph"])
        if not isinstance(model, VisionModel):
            return graph
        model.backbone = graph
        return model

    def change(self, graph: fx.GraphModule, images: Tensor) -> list[Covered]:
        """Change a captured graph in place, and say what was done and what was left.

        Args:
            graph: as `capture` gives it.
            images: a batch that it takes.
        """
        raise NotImplementedError
