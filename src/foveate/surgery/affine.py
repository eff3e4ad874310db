"""What is affine in a graph of operations, read as one convolution or linear layer.

A convolution, a batch norm, a scale, a shift and the identity are all affine in what
they take, and so is any sum of them. No module's name or class matters.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from foveate.surgery.graphs import (
    add_constant,
    aten,
    call,
    constant,
    is_call,
    norm_of,
    same_shape,
    shape,
    value,
)
from foveate.surgery.kernels import Kernel


@dataclass(frozen=True)
class Affine:
    """What an expression computes of its source.

    Attributes:
        source: the node that it takes.
        root: the node whose value it is.
        kernel: that does it in one.
        is_linear: channels stand in the last axis; the kernel is 1x1.
        parts: operations that it stands for.
        kernels: convolutions and linear layers among them.
        cost: weights of all its parts together.
    """

    source: fx.Node
    root: fx.Node
    kernel: Kernel
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

    @property
    def scale(self) -> Tensor:
        """What it multiplies each channel with, where it is pointwise: (O,)."""
        return self.kernel.weight[:, 0, 0, 0]

    def __call__(self, x: Tensor) -> Tensor:
        if self.is_linear:
            return F.linear(x, self.kernel.weight[:, :, 0, 0], self.kernel.bias)
        return self.kernel(x)

    def error(self, values: dict[fx.Node, Any]) -> float:
        """Largest error against the largest value, on recorded values."""
        return largest_error(self(values[self.source]), values[self.root])

    def write(self, graph: fx.GraphModule) -> fx.Node:
        """A node that computes it, at the graph's insertion point."""
        kernel, like = self.kernel, self.root
        weight = kernel.weight[:, :, 0, 0] if self.is_linear else kernel.weight
        weights = (
            add_constant(graph, f"{like.name}_weight", weight),
            add_constant(graph, f"{like.name}_bias", kernel.bias),
        )
        if self.is_linear:
            return call(graph, aten.linear.default, (self.source, *weights), like)
        geometry = [list(kernel.stride), list(kernel.padding), [1, 1], kernel.groups]
        return call(graph, aten.conv2d.default, (self.source, *weights, *geometry), like)

    def scaled(self, scale: Tensor, shift: Tensor, root: fx.Node) -> "Affine":
        """Followed by a scale and a shift of each channel, each (O,)."""
        kernel = self.kernel.scaled(scale, shift)
        return replace(self, root=root, kernel=kernel, parts=self.parts + 1)

    def before(self, after: "Affine") -> "Affine | None":
        """Followed by another, where this one only scales and shifts and borders allow it."""
        kernel = self.kernel.then(after.kernel)
        if kernel is None or kernel.weight.numel() > after.kernel.weight.numel():
            return None
        return replace(after, source=self.source, kernel=kernel, parts=self.parts + after.parts)

    def plus(self, other: "Affine", root: fx.Node) -> "Affine | None":
        """The sum of two branches of one source, or None where one kernel would cost more."""
        a, b = self.kernel, other.kernel
        alike = self.source is other.source and a.stride == b.stride
        if not alike or self.is_linear != other.is_linear or len(a.bias) != len(b.bias):
            return None
        if a.cost_of_sum(b) > self.cost + other.cost:
            return None
        return replace(
            self,
            root=root,
            kernel=a.plus(b),
            parts=self.parts + other.parts + 1,
            kernels=self.kernels + other.kernels,
            cost=self.cost + other.cost,
        )


def largest_error(given: Tensor, expected: Tensor) -> float:
    """Largest difference of two tensors of as many values, against the largest expected one."""
    with torch.inference_mode():
        difference = (given.reshape(expected.shape) - expected).abs().max()
        return float(difference / expected.abs().max().clamp_min(1e-12))


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
    if is_call(node, aten.slice.Tensor):
        return _slice(graph, node)
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
    kernel = Kernel.made_of(ones, groups=channels)
    return Affine(node, node, kernel, is_linear=last, cost=channels)


def _convolution(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    args: Any = node.args
    source, weight, bias = [*args, None][:3]
    held, shift = constant(graph, weight), constant(graph, bias)
    if held is None or (bias is not None and shift is None):
        return None
    kernel = Kernel.made_of(held, shift, *args[3:])
    return Affine(source, node, kernel, parts=1, kernels=1, cost=held.numel())


def _linear(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    source, weight, bias = (*node.args, None)[:3]
    held, shift = constant(graph, weight), constant(graph, bias)
    if held is None or (bias is not None and shift is None):
        return None
    assert isinstance(source, fx.Node)
    kernel = Kernel.made_of(held[:, :, None, None], shift)
    return Affine(source, node, kernel, is_linear=True, parts=1, kernels=1, cost=held.numel())


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


def _slice(graph: fx.GraphModule, node: fx.Node) -> Affine | None:
    """Every so many pixels of a map, which is what a stride takes."""
    given: Any = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
    source, axis, start, end, step = given
    if len(shape(node)) != 4 or axis not in (2, 3) or start or step == 1:
        return None
    if isinstance(end, fx.Node) or (end is not None and end < shape(source)[axis]):
        return None
    inner = _inner(graph, source)
    if inner is None or inner.is_linear:
        return None
    high, wide = inner.kernel.stride
    stride = (high * step, wide) if axis == 2 else (high, wide * step)
    kernel = replace(inner.kernel, stride=stride)
    return replace(inner, root=node, kernel=kernel, parts=inner.parts + 1)


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
    second = inner[1].kernel
    signed = second.scaled(second.bias.new_full((len(second.bias),), sign), 0 * second.bias)
    return inner[0].plus(replace(inner[1], kernel=signed), node)


def _per_channel(graph: fx.GraphModule, given: Any, inner: Affine, axes: int) -> Tensor | None:
    """A number or a constant as one value a channel (O,), or None if it has other axes."""
    channels = len(inner.kernel.bias)
    if isinstance(given, int | float):
        return torch.full_like(inner.kernel.bias, float(given))
    held = constant(graph, given)
    if held is None or not held.is_floating_point() or held.ndim > axes:
        return None
    sizes = [1] * (axes - held.ndim) + list(held.shape)
    axis = axes - 1 if inner.is_linear else 1
    if any(size != 1 for i, size in enumerate(sizes) if i != axis):
        return None
    return held.reshape(-1).expand(channels).clone()
