"""Structural merges of any network: norms, scales, parallel branches and identities, in one kernel.

What is affine is read back as far as it goes (see `affine`), and written again as one
convolution or linear layer where that costs no more arithmetic than its parts. A scale
and a shift behind a norm that has its own become the norm's.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from foveate.surgery.affine import Affine, largest_error, read
from foveate.surgery.edit import Covered
from foveate.surgery.graph_edit import GraphEdit
from foveate.surgery.graphs import (
    Recorder,
    add_constant,
    aten,
    call,
    constant,
    is_call,
    norm_of,
    place,
    same_shape,
    shape,
    tidy,
)


@dataclass(frozen=True)
class Merge(GraphEdit):
    """Fold norms, scales, parallel branches and identities into single kernels.

    Each merge is computed beside what it replaces, on given images; one that is
    further off than `tolerance` is left out, with the figure as the reason.

    Args:
        tolerance: largest error against the largest value of the part's output.

    Raises: FoveateError if nothing could be merged, or the graph cannot be captured.
    """

    tolerance: float = 1e-4

    def change(self, graph: fx.GraphModule, images: Tensor) -> list[Covered]:
        return merge_graph(graph, images, self.tolerance)


def merge_graph(graph: fx.GraphModule, images: Tensor, tolerance: float = 1e-4) -> list[Covered]:
    """Merge what can be merged in a captured graph, in place.

    Args:
        graph: as `capture` gives it.
        images: a batch to prove each merge on.
        tolerance: as `Merge` has it.

    Returns: a line for each expression of several parts.
    """
    values = Recorder(graph).record(images)
    coverage = []
    for root in reversed(list(graph.graph.nodes)):
        if not root.users or root.op != "call_function" or norm_of(root) is root:
            continue
        found = _one_for(graph, root)
        if found is None or found.parts < 2:
            continue
        error = found.error(values)
        said = partial(Covered, place(root), f"{found.parts} parts")
        if not error <= tolerance:
            coverage.append(said(False, f"left because merged it would be off by {error:.1e}"))
            continue
        with graph.graph.inserting_before(root):
            merged = found.write(graph)
        if not same_shape(shape(merged), shape(root)):
            graph.graph.erase_node(merged)
            continue
        root.replace_all_uses_with(merged)
        values[merged] = values[root]
        graph.graph.eliminate_dead_code()
        coverage.append(said(True, f"one {found.kind}, off by at most {error:.1e}"))
    tidy(graph)
    return coverage[::-1]


@dataclass(frozen=True)
class Normed:
    """A norm over each image's own values, with a scale and a shift that it takes as its own.

    Attributes:
        norm: the call of a group norm or a layer norm.
        root: the node whose value it is.
        weight, bias: of each channel.
        parts: operations that it stands for.
    """

    norm: fx.Node
    root: fx.Node
    weight: Tensor
    bias: Tensor
    parts: int
    kind: str = "norm"

    def error(self, values: dict[fx.Node, Any]) -> float:
        """Largest error against the largest value, on recorded values."""
        norm: Any = self.norm
        source, which, *rest = norm.args
        with torch.inference_mode():
            given = norm.target(values[source], which, self.weight, self.bias, *rest[2:])
        return largest_error(given, values[self.root])

    def write(self, graph: fx.GraphModule) -> fx.Node:
        """A node that computes it, at the graph's insertion point."""
        source, which, *rest = self.norm.args
        weights = (
            add_constant(graph, f"{self.root.name}_weight", self.weight),
            add_constant(graph, f"{self.root.name}_bias", self.bias),
        )
        return call(graph, self.norm.target, (source, which, *weights, *rest[2:]), self.root)


def _one_for(graph: fx.GraphModule, root: fx.Node) -> Affine | Normed | None:
    """What computes in one what ends in a node, or None."""
    found = read(graph, root)
    if found is None or not found.is_pointwise:
        return found
    return _normed(graph, found)


def _normed(graph: fx.GraphModule, found: Affine) -> Normed | None:
    """A norm, and the scale and shift of what it gives, if that is what an expression is."""
    norm = found.source
    args: Any = norm.args
    if len(norm.users) != 1 or found.kernel.stride != (1, 1):
        return None
    over_tokens = is_call(norm, aten.layer_norm.default) and len(args[1]) == 1
    if found.is_linear != over_tokens or not (
        over_tokens or is_call(norm, aten.group_norm.default)
    ):
        return None
    weight, bias = (constant(graph, arg) for arg in (*args, None, None)[2:4])
    scale, shift = found.scale, found.kernel.bias
    weight = scale if weight is None else weight * scale
    bias = shift if bias is None else bias * scale + shift
    return Normed(norm, found.root, weight, bias, found.parts + 1)
