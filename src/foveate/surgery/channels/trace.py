"""Labels of channels sent through a network's graph."""

import copy
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from foveate.errors import FoveateError
from foveate.surgery.channels.labels import Labels
from foveate.surgery.channels.rules import Rule
from foveate.surgery.channels.ties import tied
from foveate.surgery.masks import SUFFIX, masked

WEIGHTS = (InputKind.PARAMETER, InputKind.BUFFER)


@dataclass
class Traced:
    """A network's graph with the labels of all that it computes.

    Attributes:
        program: the exported graph; its placeholders are weights and images.
        weights: names of weights and buffers, by the placeholders that stand for them.
        values: fields by node; a list of them where a node has several results.
        labels: and what is known of them.
    """

    program: torch.export.ExportedProgram
    weights: dict[fx.Node, str]
    values: dict[fx.Node, Any]
    labels: Labels

    @property
    def graph(self) -> fx.Graph:
        return self.program.graph


def trace(model: nn.Module, images: Tensor) -> Traced:
    """Send labels through a network.

    Args:
        model: in evaluation mode; stays as it is.
        images: a batch of two that it takes.

    Raises: FoveateError if the model's Python cannot be followed.
    """
    program = _exported(model, images)
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    weights, values, labels = {}, {}, Labels()
    masks = {name + SUFFIX for name in masked(model)}
    for node, spec in zip(inputs, program.graph_signature.input_specs, strict=True):
        values[node] = []
        if spec.kind in WEIGHTS and spec.target not in masks:
            weights[node] = spec.target
            values[node] = labels.of_axes(node.meta["val"].shape)
    traced = Traced(program, weights, values, labels)
    for node in program.graph.nodes:
        if node.op == "call_function":
            values[node] = Rule(node, values, labels).result()
        elif node.op == "output":
            labels.fix(Rule(node, values, labels).taken(), "it is an output of the network")
    return traced


def _exported(model: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    """The graph of a copy without the tables that evaluation keeps: they hide weights."""
    fresh = copy.deepcopy(model).train().eval()
    for attempt in (1, 2):
        try:
            with torch.no_grad(), tied(fresh), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tables that a pass keeps in the module
                return torch.export.export(fresh, (images,)).run_decompositions({})
        except Exception as error:
            if attempt == 1:
                with torch.no_grad():
                    fresh = copy.deepcopy(model)
                    fresh(images)  # some networks need tables that their first pass fills
                continue
            first = str(error).strip().split("\n")[0]
            raise FoveateError(
                f"the graph of {type(model).__name__} cannot be captured ({first}): keep Python "
                "that depends on values out of its forward"
            ) from error
    raise AssertionError
