"""Hard-swish in place of GELU and SiLU, fitted to what each channel of a trained network gets.

An error function or an exponential for every value costs a runtime up to half as much as the
convolution before it; x clip(x/6 + 1/2, 0, 1) costs a fifth of that. Howard et al., *Searching for
MobileNetV3* (arXiv:1905.02244, section 5.2), train with it. Here a network that was trained without
takes it: a channel's input is scaled and shifted first, and its output after, so that the
two curves differ least in squares on the values that the channel gets. The layers on both sides
take in these numbers, so they cost nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from foveate.surgery.affine import read
from foveate.surgery.edit import Covered
from foveate.surgery.graph_edit import GraphEdit
from foveate.surgery.graphs import add_constant, aten, call, constant, is_call, place, shape
from foveate.surgery.merging import merge_graph

SMOOTH = {aten.gelu.default: "GELU", aten.silu.default: "SiLU"}
SCALES, SHIFTS = torch.arange(1.0, 3.3, 0.2), torch.arange(-1.2, 1.3, 0.4)
"""Of its input, among which the best is looked for first."""
HALVINGS = 4
"""How often it is looked for nearer to the best so far, at half the distance."""
SAMPLES = 512
"""Values of a channel that a fit looks at."""
RARE = 2 * torch.special.ndtri(torch.linspace(0, 1, 34)[1:-1])
"""Values that every fit looks at besides, as some images may bring what none to fit on did."""


@dataclass(frozen=True)
class HardSwish(GraphEdit):
    """Compute hard-swish in place of GELU and SiLU, fitted to each channel.

    Layers are fitted in order, each on what the ones before it now give. What changes is an
    approximation: judge the accuracy.

    Args:
        tolerance: largest error of one activation, root mean square, against the deviation
            of what it gives; one that is further off stays.

    Raises: FoveateError if nothing could be changed, or the graph cannot be captured.
    """

    looks_at = "images"

    tolerance: float = 0.1

    def change(self, graph: fx.GraphModule, images: Tensor) -> list[Covered]:
        return take_hard_swish(graph, images, self.tolerance)


def is_smooth(graph: fx.GraphModule) -> bool:
    """Whether a captured graph computes GELU or SiLU anywhere."""
    return any(is_call(node, *SMOOTH) for node in graph.graph.nodes)


def take_hard_swish(graph: fx.GraphModule, images: Tensor, tolerance: float = 0.1) -> list[Covered]:
    """Compute hard-swish where a captured graph has GELU or SiLU between two layers, in place.

    Args:
        graph: as `capture` gives it.
        images: (B, C, H, W) to fit on.
        tolerance: as `HardSwish` has it.

    Returns: a line for each GELU and SiLU.
    """
    smooth = [node for node in graph.graph.nodes if is_call(node, *SMOOTH)]
    between = {node for node in smooth if _is_between_layers(graph, node)}
    fits = _Fitting(graph, between, tolerance).on(images)
    coverage = []
    for node in smooth:
        kind = SMOOTH[node.target]
        if node not in between:
            coverage.append(Covered(place(node), kind, False, "not between two layers alone"))
            continue
        fit = fits[node]
        said = f"off by {100 * fit.error:.1f}% of its deviation"
        if fit.error > tolerance:
            coverage.append(Covered(place(node), kind, False, f"left: it would be {said}"))
            continue
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(fit.write(graph, node))
        coverage.append(Covered(place(node), kind, True, f"hard-swish, {said}"))
    graph.graph.eliminate_dead_code()
    merge_graph(graph, images[:2])
    return coverage


@dataclass(frozen=True)
class Fit:
    """gain * hardswish(scale * x + shift) + offset, each (C,), beside an activation of x.

    Attributes:
        error: root mean square of the difference, against the activation's deviation.
    """

    scale: Tensor
    shift: Tensor
    gain: Tensor
    offset: Tensor | None
    error: float

    def __call__(self, x: Tensor) -> Tensor:
        """Of maps (B, C, H, W) or tokens (..., C)."""
        scale, shift, gain = (_spread(held, x.ndim) for held in (self.scale, self.shift, self.gain))
        y = gain * F.hardswish(scale * x + shift)
        return y if self.offset is None else y + _spread(self.offset, x.ndim)

    def write(self, graph: fx.GraphModule, node: fx.Node) -> fx.Node:
        """Nodes that compute it of what `node` takes, at the graph's insertion point."""
        axes = len(shape(node))

        def held(name: str, values: Tensor) -> fx.Node:
            return add_constant(graph, f"{node.name}_{name}", _spread(values, axes))

        made: Any = node.args[0]
        made = call(graph, aten.mul.Tensor, (made, held("scale", self.scale)), node)
        made = call(graph, aten.add.Tensor, (made, held("shift", self.shift)), node)
        made = call(graph, aten.hardswish.default, (made,), node)
        made = call(graph, aten.mul.Tensor, (made, held("gain", self.gain)), node)
        if self.offset is None:
            return made
        return call(graph, aten.add.Tensor, (made, held("offset", self.offset)), node)


def fitted(x: Tensor, act: Callable[[Tensor], Tensor], *, may_shift: bool = True) -> Fit:
    """The hard-swish that is nearest to an activation, channel by channel.

    Args:
        x: (N, C), what the activation takes.
        act: the activation.
        may_shift: whether an offset may be added.
    """
    seen = len(x)
    x = torch.cat([x, RARE[:, None].expand(-1, x.shape[1])]).double()
    y = act(x)
    mean = y.mean(0) if may_shift else torch.zeros_like(y[0])
    best = torch.full_like(mean, torch.inf)
    scale, shift, gain, offset = (torch.zeros_like(mean) for _ in range(4))

    def look(s: Tensor, t: Tensor) -> None:
        given = F.hardswish(s * x + t)
        centre = given.mean(0) if may_shift else torch.zeros_like(mean)
        away = given - centre
        slope = (away * (y - mean)).sum(0) / (away * away).sum(0).clamp_min(1e-12)
        loss = (slope * away - (y - mean)).square().mean(0)
        better = loss < best
        found = (loss, s, t, slope, mean - slope * centre)
        for held, values in zip((best, scale, shift, gain, offset), found, strict=True):
            held.copy_(torch.where(better, values, held))

    for s, t in torch.cartesian_prod(SCALES, SHIFTS).double():
        look(s, t)
    apart = SCALES[1] - SCALES[0], SHIFTS[1] - SHIFTS[0]
    for _ in range(HALVINGS):
        apart = apart[0] / 2, apart[1] / 2
        s, t = scale.clone(), shift.clone()
        for along, across in product((-1, 0, 1), repeat=2):
            look(s + along * apart[0], t + across * apart[1])
    away = gain * F.hardswish(scale * x + shift) + offset - y
    spread = y[:seen].var(0, correction=0).mean().clamp_min(1e-12)
    error = float((away[:seen].square().mean() / spread).sqrt())
    held = [values.float() for values in (scale, shift, gain, offset)]
    return Fit(held[0], held[1], held[2], held[3] if may_shift else None, error)


class _Fitting(fx.Interpreter):
    """Runs a graph, fits activations on the way, and goes on with what the fits give."""

    def __init__(self, graph: fx.GraphModule, nodes: set[fx.Node], tolerance: float) -> None:
        super().__init__(graph)
        self._nodes = nodes
        self._tolerance = tolerance
        self._found: dict[fx.Node, Fit] = {}

    @torch.no_grad()
    def on(self, images: Tensor) -> dict[fx.Node, Fit]:
        self.run(images)
        return self._found

    def run_node(self, n: fx.Node) -> Any:
        y = super().run_node(n)
        if n not in self._nodes:
            return y
        x = self.env[n.args[0]]  # pyright: ignore
        act = partial(n.target, **n.kwargs)  # pyright: ignore
        fit = fitted(_rows(x), act, may_shift=not _pads(next(iter(n.users))))
        self._found[n] = fit
        return fit(x) if fit.error <= self._tolerance else y


def _is_between_layers(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an activation takes what a layer alone gives it, and gives it to a layer alone."""
    source: Any = node.args[0]
    made = read(graph, source)
    if made is None or made.is_pointwise or len(source.users) != 1 or len(node.users) != 1:
        return False
    taker = next(iter(node.users))
    layer = aten.linear.default if made.is_linear else aten.conv2d.default
    is_layer = is_call(taker, layer) and taker.args[0] is node
    has_axes = made.is_linear == (len(shape(node)) != 4)
    return is_layer and has_axes and constant(graph, taker.args[1]) is not None


def _pads(layer: fx.Node) -> bool:
    """Whether a layer adds zeros around what it takes."""
    padding: Any = layer.args[4] if len(layer.args) > 4 else ()
    return any(padding)


def _spread(values: Tensor, axes: int) -> Tensor:
    """A value a channel (C,), for maps (B, C, H, W) or for what has channels last."""
    return values[:, None, None] if axes == 4 else values


def _rows(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) or tokens (..., C) as (N, C), N at most `SAMPLES`, from all places."""
    rows = (x.movedim(1, -1) if x.ndim == 4 else x).flatten(0, -2)
    count = min(len(rows), SAMPLES)
    return rows[torch.linspace(0, len(rows) - 1, count).long()]
