"""Structural merges of any network: norms, scales, parallel branches and identities, in one kernel.

A convolution, a batch norm, a scale, a shift and the identity are all affine in
what they take, and so is any sum of them. So each such expression over one
source is read as one `Affine`, and written back as one convolution or linear
layer where that costs no more arithmetic than its parts. No module's name or
class matters: what is merged is found in the graph of operations.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

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
    value,
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
        found = read(graph, root)
        if found is None or found.parts < 2 or not found.kernels:
            continue
        error = found.error(values)
        said = partial(Covered, place(root), f"{found.parts} parts")
        if not error <= tolerance:
            coverage.append(said(False, f"left because merged it would be off by {error:.1e}"))
            continue
        with graph.graph.inserting_before(root):
            merged = found.write(graph, root)
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
class Affine:
    """What an expression computes of its source, as one convolution or linear layer.

    Attributes:
        source: the node that it takes.
        root: the node whose value it is.
        weight: (O, I / groups, k, k).
        bias: (O,).
        stride, padding: of both axes.
        groups: of the channels.
        is_linear: channels stand in the last axis; the kernel is 1x1.
        parts: operations that it stands for.
        kernels: convolutions and linear layers among them.
        cost: weights of all its parts together.
    """

    source: fx.Node
    root: fx.Node
    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    is_linear: bool = False
    parts: int = 0
    kernels: int = 0
    cost: int = 0

    @property
    def kind(self) -> str:
        return "linear layer" if self.is_linear else "convolution"

    @property
    def is_pointwise(self) -> bool:
        """Whether it only scales and shifts each channel."""
        return self.kernels == 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_linear:
            return F.linear(x, self.weight[:, :, 0, 0], self.bias)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)

    def error(self, values: dict[fx.Node, Any]) -> float:
        """Largest error against the largest value, on recorded values."""
        with torch.inference_mode():
            expected = values[self.root]
            given = self(values[self.source]).reshape(expected.shape)
            return float((given - expected).abs().max() / expected.abs().max().clamp_min(1e-12))

    def write(self, graph: fx.GraphModule, like: fx.Node) -> fx.Node:
        """A node that computes it."""
        weight = self.weight[:, :, 0, 0] if self.is_linear else self.weight
        weights = (
            add_constant(graph, f"{like.name}_weight", weight),
            add_constant(graph, f"{like.name}_bias", self.bias),
        )
        if self.is_linear:
            return call(graph, aten.linear.default, (self.source, *weights), like)
        geometry = [list(self.stride), list(self.padding), [1, 1], self.groups]
        return call(graph, aten.conv2d.default, (self.source, *weights, *geometry), like)

    def scaled(self, scale: Tensor, shift: Tensor, root: fx.Node) -> "Affine":
        """Followed by a scale and a shift of each channel, each (O,)."""
        return replace(
            self,
            root=root,
            weight=self.weight * scale.view(-1, 1, 1, 1),
            bias=self.bias * scale + shift,
            parts=self.parts + 1,
        )

    def before(self, kernel: "Affine") -> "Affine | None":
        """Followed by a kernel, where this one only scales and shifts."""
        if any(kernel.padding) and self.bias.any():
            return None  # the zeros around a map would have to be shifted, too
        inside = kernel.weight.shape[1]
        per_group = len(kernel.weight) // kernel.groups
        scale, shift = (
            v.view(kernel.groups, 1, inside).expand(-1, per_group, -1).reshape(-1, inside, 1, 1)
            for v in (self.weight[:, 0, 0, 0], self.bias)
        )
        return replace(
            kernel,
            source=self.source,
            weight=kernel.weight * scale,
            bias=kernel.bias + (kernel.weight * shift).sum((1, 2, 3)),
            parts=self.parts + kernel.parts,
        )

    def plus(self, other: "Affine", root: fx.Node) -> "Affine | None":
        """The sum of two branches of one source, or None where one kernel would cost more."""
        alike = self.source is other.source and self.stride == other.stride
        if not alike or self.is_linear != other.is_linear or len(self.bias) != len(other.bias):
            return None
        groups = math.gcd(self.groups, other.groups)
        padding = tuple(
            max(s.reach(axis)[side] for s in (self, other) for side in (0, 1)) for axis in (0, 1)
        )
        channels = self.weight.shape[1] * self.groups
        kernel = [2 * p + 1 for p in padding]
        cost = len(self.bias) * channels // groups * math.prod(kernel)
        if cost > self.cost + other.cost:
            return None
        weights = [a.spread(groups, padding) for a in (self, other)]
        return replace(
            self,
            root=root,
            weight=weights[0] + weights[1],
            bias=self.bias + other.bias,
            padding=padding,
            groups=groups,
            parts=self.parts + other.parts + 1,
            kernels=self.kernels + other.kernels,
            cost=self.cost + other.cost,
        )

    def reach(self, axis: int) -> tuple[int, int]:
        """How many pixels the kernel sees before and after its own place."""
        return self.padding[axis], self.weight.shape[2 + axis] - 1 - self.padding[axis]

    def spread(self, groups: int, padding: tuple[int, ...]) -> Tensor:
        """The same weight in fewer groups, and in a kernel of 2 * padding + 1 pixels."""
        out, inside = self.weight.shape[:2]
        share = self.groups // groups
        wide = self.weight.new_zeros(out, share, inside, *self.weight.shape[2:])
        group = torch.arange(out) * self.groups // out
        wide[torch.arange(out), group % share] = self.weight
        (top, bottom), (left, right) = self.reach(0), self.reach(1)
        high, wide_by = padding
        margins = (wide_by - left, wide_by - right, high - top, high - bottom)
        return F.pad(wide.flatten(1, 2), margins)


# ---------------------------------------------------------------- reading expressions


def read(graph: fx.GraphModule, node: Any) -> Affine | None:
    """The affine expression that ends in a node, as far back as it goes; None if it is none."""
    if not isinstance(node, fx.Node):
        return None
    if is_call(node, aten.conv2d.default):
        return _after_pointwise(graph, _convolution(graph, node))
    if is_call(node, aten.linear.default):
        return _after_pointwise(graph, _linear(graph, node))
    if (norm := norm_of(node)) is not None:
        return _norm(graph, node, norm)
    if is_call(node, aten.reshape.default):
        return _view(graph, node)
    if is_call(node, aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor):
        return _arithmetic(graph, node)
    return None


def _inner(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    """What a node inside an expression computes: the identity of it if others use it, too."""
    found = read(graph, node) if len(node.users) == 1 else None
    if found is not None:
        return found
    sizes = shape(node)
    last = len(sizes) != 4
    channels = sizes[-1 if last else 1]
    if not isinstance(channels, int):
        return None
    ones = torch.ones(channels, 1, 1, 1, dtype=value(node).dtype)
    zeros = torch.zeros_like(ones[:, 0, 0, 0])
    return Affine(node, node, ones, zeros, groups=channels, is_linear=last, cost=channels)


def _convolution(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    args: dict[int, Any] = dict(enumerate(node.args))
    source = args[0]
    weight, bias = constant(graph, args[1]), constant(graph, args.get(2))
    if weight is None or (args.get(2) is not None and bias is None):
        return None
    stride, padding, dilation = (tuple(args.get(i, [d, d])) for i, d in ((3, 1), (4, 0), (5, 1)))
    stride, padding, dilation = (v * 2 if len(v) == 1 else v for v in (stride, padding, dilation))
    assert isinstance(source, fx.Node)
    cost = weight.numel()
    if dilation != (1, 1):
        weight = _dilated(weight, dilation)
    zeros = weight.new_zeros(len(weight))
    return Affine(
        source,
        node,
        weight,
        zeros if bias is None else bias,
        stride,
        padding,
        args.get(6, 1),
        parts=1,
        kernels=1,
        cost=cost,
    )


def _dilated(weight: Tensor, dilation: tuple[int, ...]) -> Tensor:
    """A kernel with its gaps written out as zeros."""
    sizes = [d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True)]
    wide = weight.new_zeros(*weight.shape[:2], *sizes)
    wide[:, :, :: dilation[0], :: dilation[1]] = weight
    return wide


def _linear(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    source, weight, bias = (*node.args, None)[:3]
    held, shift = constant(graph, weight), constant(graph, bias)
    if held is None or (bias is not None and shift is None):
        return None
    assert isinstance(source, fx.Node)
    shift = held.new_zeros(len(held)) if shift is None else shift
    weight = held[:, :, None, None]
    return Affine(
        source, node, weight, shift, is_linear=True, parts=1, kernels=1, cost=held.numel()
    )


def _after_pointwise(graph: fx.GraphModule, kernel: Affine | None) -> Affine | None:
    """Take in the scale and shift that come before a kernel and go nowhere else."""
    if kernel is None or len(kernel.source.users) != 1:
        return kernel
    first = read(graph, kernel.source)
    if first is None or not first.is_pointwise or first.is_linear != kernel.is_linear:
        return kernel
    return first.before(kernel) or kernel


def _norm(graph: fx.GraphModule, node: fx.Node, norm: fx.Node) -> Affine | None:
    args: Any = norm.args
    source, *held, _, eps = args
    assert isinstance(source, fx.Node)
    weight, bias, mean, variance = (constant(graph, arg) for arg in held)
    if mean is None or variance is None:
        return None
    scale = (variance + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    shift = shift if bias is None else shift + bias
    if len(shape(source)) not in (2, 4) or len(norm.users) != 1:
        return None
    inner = _inner(graph, source)
    return inner and inner.scaled(scale, shift, node)


def _view(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if len(source.users) != 1 or str(shape(source)[-1]) != str(shape(node)[-1]):
        return None
    inner = read(graph, source)
    if inner is None or not inner.is_linear:
        return None
    return replace(inner, root=node)


def _arithmetic(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    if node.kwargs or len(node.args) != 2:
        return None
    a, b = node.args
    sign = -1.0 if node.target is aten.sub.Tensor else 1.0
    is_sum = node.target in (aten.add.Tensor, aten.sub.Tensor)
    if isinstance(a, fx.Node) and isinstance(b, fx.Node) and a.op != "get_attr" != b.op:
        return _sum(graph, node, a, b, sign) if is_sum else None
    if not isinstance(a, fx.Node) or a.op == "get_attr":
        if node.target not in (aten.add.Tensor, aten.mul.Tensor):
            return None
        a, b = b, a
    assert isinstance(a, fx.Node)
    inner = _inner(graph, a) if same_shape(shape(a), shape(node)) else None
    values = inner and _per_channel(graph, b, inner, len(shape(node)))
    if inner is None or values is None:
        return None
    if is_sum:
        return inner.scaled(torch.ones_like(values), sign * values, node)
    scale = 1 / values if node.target is aten.div.Tensor else values
    return inner.scaled(scale, torch.zeros_like(scale), node)


def _sum(
    graph: fx.GraphModule, node: fx.Node, a: fx.Node, b: fx.Node, sign: float
) -> Affine | None:
    if not same_shape(shape(a), shape(b)):
        return None
    inner = _inner(graph, a), _inner(graph, b)
    if inner[0] is None or inner[1] is None:
        return None
    second = replace(inner[1], weight=sign * inner[1].weight, bias=sign * inner[1].bias)
    return inner[0].plus(second, node)


def _per_channel(graph: fx.GraphModule, given: Any, inner: Affine, axes: int) -> Tensor | None:
    """A number or a constant as one value a channel (O,), or None if it has other axes."""
    channels = len(inner.bias)
    if isinstance(given, int | float):
        return torch.full_like(inner.bias, float(given))
    held = constant(graph, given)
    if held is None or not held.is_floating_point() or held.ndim > axes:
        return None
    sizes = [1] * (axes - held.ndim) + list(held.shape)
    axis = axes - 1 if inner.is_linear else 1
    if any(size != 1 for i, size in enumerate(sizes) if i != axis):
        return None
    return held.reshape(-1).expand(channels).clone()
