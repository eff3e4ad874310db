"""Convolutions in a row: what stands between them, and which of them could become one.

Position 0 is what the first takes, position l what follows convolution l: its norm, what
is added, and the activation. A residual connection leads from one position to a later one.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from foveate.surgery.chains import NORMS
from foveate.surgery.depth_compression_dp.calls import Call, Event, Watch, is_traceable
from foveate.surgery.layers import obstacle

ACTIVATIONS = frozenset(
    {"relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "silu", "hardswish"}
    | {"hardsigmoid", "gelu", "mish", "softplus", "sigmoid", "tanh"}
)


@dataclass(frozen=True)
class Link:
    """A convolution, and what is done to what it gives until the next takes it.

    Attributes:
        conv: name of the layer.
        layer: itself.
        takes: shape of what it takes.
        norm: name of the batch norm behind it, or None.
        act: call of the activation, or None.
        add: call of an addition, or None, of the value at position `source`, which is
            operand `operand` of it.
        is_late: the addition comes after the activation.
        closed: why no run may lead across the position behind it, or "".
    """

    conv: str
    layer: nn.Conv2d
    takes: tuple[int, ...]
    norm: str | None = None
    act: Call | None = None
    add: Call | None = None
    source: int = -1
    operand: int = 0
    is_late: bool = False
    closed: str = ""


@dataclass(frozen=True)
class Row:
    """Links, one after the other."""

    links: list[Link] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.links)

    def may_merge(self, i: int, j: int) -> bool:
        """Whether the convolutions between two positions can become one, without activations.

        A residual connection must lie inside with both ends, or outside.
        """
        if any(link.closed for link in self.links[i : j - 1]):
            return False
        for target, link in enumerate(self.links, 1):
            source = link.source
            if link.add and (i < source < j < target or source < i < target < j):
                return False
            if i < source < target == j and target not in self.folded(i, j):
                return False  # what would be added, inside the run, is larger there
        return True

    def folded(self, i: int, j: int) -> list[int]:
        """Positions in a merged piece whose additions become part of its kernel.

        At its end, what is added behind the activation does not, as that stays.
        """
        found = []
        for target in range(i + 1, j + 1):
            link = self.links[target - 1]
            bars = target == j and link.is_late and link.act is not None
            if link.add is not None and link.source >= i and not bars:
                found.append(target)
        return found

    def margins(self, i: int, j: int) -> list[tuple[int, int]]:
        """By how much each position's map is larger on each side where a piece pads only at its
        beginning; the first is by how much it pads there."""
        found = [(0, 0)]
        for link in reversed(self.links[i:j]):
            layer: Any = link.layer
            pairs = zip(found[0], layer.stride, layer.padding, strict=True)
            high, wide = (margin * stride + padding for margin, stride, padding in pairs)
            found.insert(0, (high, wide))
        return found

    def merged(self, i: int, j: int) -> nn.Conv2d:
        """A layer of the size that the convolutions between two positions become, any weights."""
        first: Any = self.links[i].layer
        size, step, groups = [1, 1], [1, 1], 0
        for link in self.links[i:j]:
            layer: Any = link.layer
            for axis in (0, 1):
                size[axis] += (layer.kernel_size[axis] - 1) * layer.dilation[axis] * step[axis]
                step[axis] *= layer.stride[axis]
            groups = math.gcd(groups, layer.groups)
        merged = nn.Conv2d(
            first.in_channels,
            self.links[j - 1].layer.out_channels,
            (size[0], size[1]),
            (step[0], step[1]),
            self.margins(i, j)[0],
            groups=groups,
            dtype=first.weight.dtype,
            device=first.weight.device,
        )
        return merged.eval()


def rows(model: nn.Module, x: Tensor, skip: tuple[str, ...] = ()) -> list[Row]:
    """Every row of two or more convolutions that a model calls, in the order of their calls.

    Args:
        model: run once, in evaluation mode; its mode is restored.
        x: a batch that it takes.
        skip: patterns of names of layers that are to be left.
    """
    return [row for row in _Reader(model, x, skip).read() if len(row) > 1]


class _Reader:
    """Follows values from convolution to convolution."""

    def __init__(self, model: nn.Module, x: Tensor, skip: tuple[str, ...]) -> None:
        watch = Watch(model)
        self.model, self.skip = model, skip
        self.events, self.shapes = watch.events(x), watch.shapes
        self.uses: defaultdict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            for value in set(event.takes):
                self.uses[value].append(event)

    def read(self) -> list[Row]:
        found: list[Row] = []
        seen: set[Event] = set()
        for event in self.events:
            conv: Event | None = event if self._is_plain(event) else None
            row, at = Row(), {event.takes[0]: 0} if event.takes else {}
            added: set[Event] = set()
            while conv is not None and conv not in seen:
                seen.add(conv)
                link, value = self._link(conv, at, added)
                row.links.append(link)
                at[value] = len(row)
                conv = self._next(value)
            if row.links:
                found.append(self._close(row, at, added))
        return found

    def _link(self, conv: Event, at: dict[int, int], added: set[Event]) -> tuple[Link, int]:
        """A convolution with all that alone takes what it gives, and the value behind that."""
        layer = self.model.get_submodule(conv.path)
        assert isinstance(layer, nn.Conv2d)
        link, value = Link(conv.path, layer, self.shapes[conv.takes[0]]), conv.makes[0]
        while (event := self._only_use(value)) is not None:
            if self._is_norm(event) and not (link.norm or link.act or link.add):
                link = replace(link, norm=event.path)
            elif event.name in ACTIVATIONS and link.act is None and self._changes(event):
                link = replace(link, act=event.call)
            elif event.name == "add" and link.add is None and self._changes(event):
                operand = 1 if event.takes[0] == value else 0
                source = at.get(event.takes[operand]) if len(event.takes) == 2 else None
                if source is None or self.shapes[event.takes[operand]] != self.shapes[value]:
                    break
                late = link.act is not None
                link = replace(link, add=event.call, source=source, operand=operand, is_late=late)
                added.add(event)
            else:
                break
            value = event.makes[0]
        return link, value

    def _close(self, row: Row, at: dict[int, int], added: set[Event]) -> Row:
        """The row, with those positions closed whose values others see, too."""
        links = list(row.links)
        for value, position in at.items():
            others = [e for e in self.uses[value] if e not in added and not self._is_plain(e)]
            if 0 < position < len(row) and others:
                why = "what it gives goes elsewhere, too"
                links[position - 1] = replace(links[position - 1], closed=why)
        return Row(links)

    def _next(self, value: int) -> Event | None:
        """The convolution that takes a value, if it is the only one."""
        convs = [event for event in self.uses[value] if self._is_plain(event)]
        return convs[0] if len(convs) == 1 else None

    def _only_use(self, value: int) -> Event | None:
        uses = self.uses[value]
        return uses[0] if len(uses) == 1 and uses[0].makes else None

    def _is_plain(self, event: Event) -> bool:
        """Whether a call is all that a convolution does, whose padding is a number of zeros."""
        if event.name != "conv2d" or event.call is None or event.call.what:
            return False
        layer = self.model.get_submodule(event.path)
        if not isinstance(layer, nn.Conv2d) or isinstance(layer.padding, str):
            return False
        return not obstacle(event.path, layer, self.skip)

    def _is_norm(self, event: Event) -> bool:
        norm = self.model.get_submodule(event.path)
        if event.name != "batch_norm" or type(norm) not in NORMS:
            return False
        return norm.running_mean is not None and event.call is not None

    def _changes(self, event: Event) -> bool:
        return event.call is not None and is_traceable(self.model, event.call)
