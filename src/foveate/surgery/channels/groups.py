"""Groups of channels: which slices of which weights go together, all through a network."""

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from foveate.surgery.channels.labels import axes, box_shape
from foveate.surgery.channels.rules import CONVOLUTIONS
from foveate.surgery.channels.trace import trace
from foveate.surgery.edit import Covered

Slices = dict[tuple[str, int], np.ndarray]
"""Indices along an axis of a weight, by its name and the axis."""


@dataclass(frozen=True)
class Group:
    """Channels of one kind, any of which may go.

    Attributes:
        name: of the layer that makes them: the first in the network's order.
        weights: names of the weights, and axes, that hold them.
        channels: for each, the slices that go with it.
        macs: multiply-adds that each channel costs, an image.
        params: numbers that each channel holds.
    """

    name: str
    weights: tuple[tuple[str, int], ...]
    channels: list[Slices] = field(repr=False)
    macs: float = 0.0
    params: int = 0

    def __len__(self) -> int:
        return len(self.channels)

    def scores(self, model: nn.Module) -> np.ndarray:
        """How much each channel weighs: the mean square of all weights that go with it.

        Each slice counts alike, however large; tensors of one axis, such as biases, do not.

        Args:
            model: whose weights are meant, of the names that the group knows.
        """
        held = _tensors(model)
        totals, counts = np.zeros(len(self)), np.zeros(len(self))
        for name, axis in self.weights:
            if held[name].ndim < 2 or not held[name].is_floating_point():
                continue
            rows = held[name].detach().double().movedim(axis, 0).flatten(1)
            told = rows.square().mean(1).numpy()
            for i, slices in enumerate(self.channels):
                totals[i] += told[slices[name, axis]].sum()
                counts[i] += len(slices[name, axis])
        return totals / np.maximum(counts, 1)


class Channels:
    """What can be removed from a network, and what must stay and why.

    Args:
        model: in evaluation mode; stays as it is.
        images: a batch of two that it takes.
        whole: attention heads and the groups of grouped convolutions go as a whole;
            else the same number of channels of each goes.

    Attributes:
        groups: those of which something may go.
        left: a line for each layer of which nothing may go.

    Raises: FoveateError if the model's Python cannot be followed.
    """

    def __init__(self, model: nn.Module, images: Tensor, whole: bool = True) -> None:
        self.traced = trace(model, images)
        self.model = model
        labels = self.traced.labels
        pairs, fixed = [], list(labels.fixed)
        for box in labels.boxes:
            by_rows = whole and not box.even
            pairs += box.rows() if by_rows else box.columns()
            stays = box.must_stay(by_rows)
            if stays is not None:
                fixed.append((stays, "what holds it goes as a whole or evenly"))
        pairs += labels.untied(labels.components(pairs))
        self.component = labels.components(pairs)
        self.reasons: dict[int, str] = {}
        for one, reason in fixed:
            for number in np.unique(self.component[one.flatten().numpy()]):
                self.reasons.setdefault(int(number), reason)
        self.groups, self.left = self._sorted()

    def _sorted(self) -> tuple[list[Group], list[Covered]]:
        """All weights' slices by what they go with."""
        members: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(dict)
        left: dict[str, str] = {}
        for node, name in self.traced.weights.items():
            for one in self.traced.values[node]:
                [axis] = axes(one)
                for index, label in enumerate(one.flatten().tolist()):
                    number = int(self.component[label])
                    if number not in self.reasons:
                        members[number].setdefault((name, axis), []).append(index)
                    elif axis == 0 and name.endswith("weight"):
                        left[name.rpartition(".")[0]] = self.reasons[number]
        alike: dict[tuple[tuple[str, int], ...], list[Slices]] = defaultdict(list)
        for slices in members.values():
            if any(axis == 0 for _, axis in slices):
                arrays = {key: np.array(found) for key, found in slices.items()}
                alike[tuple(slices)].append(arrays)
        modules = dict(self.model.named_modules(remove_duplicate=False))
        uses = self._uses()
        groups: dict[str, Group] = {}
        for weights, channels in alike.items():
            if len(channels) > 1:
                name = _free(_maker(weights), groups)
                groups[name] = Group(name, weights, channels, *self._cost(channels[0], uses))
            else:
                left[_maker(weights)] = "its channels would all go together"
        kinds = {n: type(modules[n]).__name__ if n in modules else "parameter" for n in left}
        lines = [Covered(n, kinds[n], False, f"left, as {why}") for n, why in left.items()]
        return list(groups.values()), lines

    def _uses(self) -> dict[str, int]:
        """How many times an image uses each number of the weights of convolutions and the like."""
        found: dict[str, int] = defaultdict(int)
        for node in self.traced.graph.nodes:
            own = str(node.target).removeprefix("aten.").split(".")[0]
            weight = node.args[1] if own in (*CONVOLUTIONS, "linear") else None
            if weight in self.traced.weights:
                out = node.meta["val"].shape
                outputs = weight.meta["val"].shape[0]
                found[self.traced.weights[weight]] += int(np.prod(out)) // (out[0] * outputs)
        return found

    def _cost(self, channel: Slices, uses: dict[str, int]) -> tuple[float, int]:
        """Multiply-adds and parameters that go with one channel, if no other goes."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        macs, params = 0.0, 0
        for name in {name for name, _ in channel} & set(parameters):
            old = new = parameters[name].shape
            for (weight, axis), indices in channel.items():
                if weight == name:
                    new = (*new[:axis], new[axis] - len(indices), *new[axis + 1 :])
            gone = int(np.prod(old)) - int(np.prod(new))
            macs += gone * uses[name]
            params += gone
        return macs, params

    # ---------------------------------------------------------------- what a choice means

    def stays(self, gone: dict[str, list[int]]) -> np.ndarray:
        """For every label whether it stays, when some channels of named groups go."""
        stays = np.ones(self.traced.labels.count, bool)
        by_name = {group.name: group for group in self.groups}
        nodes = {name: node for node, name in self.traced.weights.items()}
        numbers = []
        for name, chosen in gone.items():
            for index in chosen:
                (weight, axis), indices = next(iter(by_name[name].channels[index].items()))
                field_ = next(f for f in self.traced.values[nodes[weight]] if axes(f) == {axis})
                numbers.append(self.component[int(field_.flatten()[int(indices[0])])])
        stays[np.isin(self.component, numbers)] = False
        return stays

    def macs(self, stays: np.ndarray) -> int:
        """Multiply-adds an image of convolutions and linear layers, of the labels that stay."""
        sizes = {name: self.size(node, stays) for node, name in self.traced.weights.items()}
        return sum(uses * int(np.prod(sizes[name])) for name, uses in self._uses().items())

    def obstacle(self, stays: np.ndarray) -> str:
        """Why the labels that stay make no network, or ""."""
        for box in self.traced.labels.boxes:
            if not box.allows(stays):
                return "its heads, groups or parts would not stay equal"
        for node, name in self.traced.weights.items():
            if 0 in self.size(node, stays):
                return f"nothing of {name} would stay"
        return ""

    def keep(self, stays: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
        """Of every weight that loses something, the indices that stay, by axis."""
        found: dict[str, dict[int, np.ndarray]] = {}
        for node, name in self.traced.weights.items():
            for one in self.traced.values[node]:
                inside = stays[one.flatten().numpy()]
                if not inside.all():
                    found.setdefault(name, {})[axes(one).pop()] = inside.nonzero()[0]
        return found

    def mask(self, node: fx.Node, stays: np.ndarray, part: int | None = None) -> Tensor | None:
        """Which elements of a node's value stay, to broadcast; None if all do."""
        fields = self.traced.values[node] if part is None else self.traced.values[node][part]
        mask = None
        for one in fields:
            inside = torch.from_numpy(stays[one.numpy()])
            if not inside.all():
                mask = inside if mask is None else mask & inside
        return mask

    def norm_groups(self, node: fx.Node, stays: np.ndarray) -> int:
        """How many groups of a group norm's channels stay."""
        source, groups, *_ = node.args
        assert isinstance(source, fx.Node)
        assert isinstance(groups, int)
        mask = self.mask(source, stays)
        if mask is None or groups == 1:
            return groups
        channels = source.meta["val"].shape[1]
        inside = mask.expand(-1, channels, *[-1] * (mask.ndim - 2)).transpose(0, 1)
        return int(inside.reshape(groups, -1).any(1).sum())

    def size(self, node: fx.Node, stays: np.ndarray, part: int | None = None) -> tuple[int, ...]:
        """The shape of what stays of a node's value."""
        value: Any = node.meta["val"] if part is None else node.meta["val"][part]
        mask = self.mask(node, stays, part)
        shape = list(value.shape)
        if mask is None:
            return tuple(shape)
        varied = [i for i, n in enumerate(mask.shape) if n > 1]
        inner = box_shape(mask.squeeze().numpy()) if varied else None
        if inner is None:
            return tuple(shape)
        for axis, n in zip(varied, inner, strict=True):
            shape[axis] = n
        return tuple(shape)


def _free(name: str, taken: Any) -> str:
    """The name, or with a number behind it if it is taken."""
    others = (f"{name}#{i}" for i in count(2))
    return name if name not in taken else next(other for other in others if other not in taken)


def _maker(weights: tuple[tuple[str, int], ...]) -> str:
    """The layer whose outputs they are: the first with more than a vector."""
    name = next(name for name, axis in weights if axis == 0)
    return name.rpartition(".")[0] or name


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
