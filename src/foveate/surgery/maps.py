"""Linear layers and norms of maps with channels last, computed with channels first.

Networks of maps transpose them back and forth, for linear layers and layer norms
take channels last. Runtimes store maps as they like best, and to them each
transpose is a copy that also keeps them from joining what stands on its sides.
"""

from typing import Any

from torch import fx

from foveate.surgery.edit import Covered
from foveate.surgery.graphs import (
    add_constant,
    aten,
    call,
    constant,
    is_call,
    place,
    shape,
    tidy,
)

TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
ELEMENTWISE = (
    aten.gelu.default,
    aten.relu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.sigmoid.default,
)
ARITHMETIC = (aten.add.Tensor, aten.mul.Tensor)
SAID = {
    aten.linear.default: ("Linear", True, "a pointwise convolution"),
    aten.layer_norm.default: ("LayerNorm", True, "means over channels"),
}


def channels_first(graph: fx.GraphModule) -> list[Covered]:
    """Compute with channels first what a network computes between two transposes of its maps.

    Linear layers become pointwise convolutions. Layer norms are written as means
    over the channels, whose last scale and shift merge into what follows.

    Args:
        graph: as `graphs.capture` gives it; changed in place.

    Returns: a line for each layer.
    """
    first: dict[fx.Node, fx.Node] = {}
    coverage = []
    for node in list(graph.graph.nodes):
        if is_call(node, aten.permute.default) and node.args[0] in first:
            if node.args[1] == TO_FIRST:
                node.replace_all_uses_with(first[node.args[0]])  # pyright: ignore
            continue
        with graph.graph.inserting_before(node.next):
            found = _first(graph, node, first)
        if found is not None:
            first[node] = found
            if node.target in SAID:
                coverage.append(Covered(place(node), *SAID[node.target]))
    _leave(graph, first)
    tidy(graph)
    return coverage


def _first(graph: fx.GraphModule, node: fx.Node, first: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """What a node computes, with channels first, where its inputs are known so."""
    if is_call(node, aten.permute.default):
        return node.args[0] if node.args[1] == TO_LAST else None  # pyright: ignore
    source: Any
    others: list[Any]
    source, *others = node.args or (None,)
    if source not in first and node.target in ARITHMETIC and others[0] in first:
        source, others = others[0], [source]
    if source not in first or len(shape(node)) != 4:
        return None
    if is_call(node, aten.linear.default):
        return _pointwise(graph, node, first[source])
    if is_call(node, aten.layer_norm.default) and len(others[0]) == 1:
        return _normed(graph, node, first[source])
    if is_call(node, *ELEMENTWISE):
        made = call(graph, node.target, (first[source], *others), node)
        made.kwargs = node.kwargs
        return made
    if is_call(node, *ARITHMETIC) and not node.kwargs:
        other = _other(graph, others[0], first)
        return other and call(graph, node.target, (first[source], other), node)
    return None


def _pointwise(graph: fx.GraphModule, node: fx.Node, source: fx.Node) -> fx.Node | None:
    weight = constant(graph, node.args[1])
    if weight is None:
        return None
    kernel = add_constant(graph, f"{node.name}_kernel", weight[:, :, None, None])
    bias = node.args[2] if len(node.args) > 2 else None
    return call(graph, aten.conv2d.default, (source, kernel, bias), node)


def _normed(graph: fx.GraphModule, node: fx.Node, x: fx.Node) -> fx.Node:
    """A layer norm over the channels of maps."""
    _, _, weight, bias, eps = [*node.args, None, None, None][:5]

    def then(target: Any, *args: Any) -> fx.Node:
        return call(graph, target, args, node)

    away = then(aten.sub.Tensor, x, then(aten.mean.dim, x, [1], True))
    variance = then(aten.mean.dim, then(aten.mul.Tensor, away, away), [1], True)
    scale = then(aten.rsqrt.default, then(aten.add.Tensor, variance, eps or 1e-5))
    normed = then(aten.mul.Tensor, away, scale)
    for target, given in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if (held := constant(graph, given)) is not None:
            values = add_constant(graph, f"{node.name}_{given}_first", held[:, None, None])
            normed = then(target, normed, values)
    return normed


def _other(graph: fx.GraphModule, given: Any, first: dict[fx.Node, fx.Node]) -> Any:
    """The second argument of arithmetic, with channels first; None if it cannot be had."""
    if isinstance(given, int | float):
        return given
    if given in first:
        return first[given]
    held = constant(graph, given)
    if held is None or held.ndim != 1:
        return None
    return add_constant(graph, f"{given.name}_first", held[:, None, None])


def _leave(graph: fx.GraphModule, first: dict[fx.Node, fx.Node]) -> None:
    """Give users that still want channels last what they want."""
    for node, found in first.items():
        outside = [user for user in node.users if user not in first]
        if is_call(node, aten.permute.default) or not outside:
            continue
        with graph.graph.inserting_before(found.next):
            last = call(graph, aten.permute.default, (found, TO_LAST), node)
        for user in outside:
            user.replace_input_with(node, last)
