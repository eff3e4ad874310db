"""What operations that move values, or take each by itself, do with labels.

They are run on the labels themselves.
"""

from typing import Any

import torch
from torch import Tensor, fx

from foveate.surgery.channels.labels import Box, Fields, aligned, axes, narrowed
from foveate.surgery.channels.reading import Reading, is_several
from foveate.surgery.graphs import aten


class Moving(Reading):
    """Pass labels on."""

    def pointwise(self, nodes: Any) -> Fields:
        """Values that meet element by element."""
        nodes = [node for node in nodes if isinstance(node, fx.Node)]
        own = self.node.meta["val"]
        shape = tuple((own[0] if isinstance(own, list | tuple) else own).shape)
        fields = [aligned(one, len(shape)) for n in nodes for one in self.fields(n)]
        bare: set[int] = set()
        for node in nodes:
            if not self.is_agnostic(node):
                mine = [aligned(one, len(shape)) for one in self.fields(node)]
                sizes = (1,) * (len(shape) - len(self.shape(node))) + self.shape(node)
                known = set().union(*map(axes, mine)) if mine else set()
                bare |= {i for i, n in enumerate(sizes) if n > 1} - known
        self.labels.fix([one for one in fields if axes(one) & bare], self.reason)
        return self.labels.settle([one for one in fields if not axes(one) & bare], self.reason)

    def moved(self) -> Any:
        """The labels are moved as the values are."""
        several = is_several(self.node)
        nodes = self.node.all_input_nodes
        results: list[Fields] = [[] for _ in self.node.meta["val"]] if several else [[]]
        if len(nodes) > 1:
            return self.joined(nodes)
        for one in self.fields(nodes[0]):
            if self.name.startswith("aten.split") or self.name.startswith("aten.chunk"):
                self.split_evenly(one)
            out = self.run({nodes[0]: one.expand(self.shape(nodes[0]))})
            for place_, part in zip(results, out if several else [out], strict=True):
                part = narrowed(part)
                place_ += [part] if axes(part) else []
                if len(axes(part)) > len(axes(one)):
                    self.labels.boxes.append(Box(part.squeeze()))
        return results if several else results[0]

    def tied(self) -> Fields:
        """Some axes of a value are as long as one of another: what Python reads off a shape."""
        value, source, ours, theirs = self.args
        for one in self.fields(value):
            if axes(one) != set(ours):
                continue
            others = [other for other in self.fields(source) if theirs in axes(other)]
            for other in others:
                if axes(other) == {theirs}:
                    self.labels.tie(one, other)
            if not others:
                self.labels.fix([one], f"{self.where} gives it the size of something that stays")
        return self.fields(value)

    def joined(self, nodes: list[fx.Node]) -> Fields:
        """Values set side by side; what has no labels there gets some that must stay."""
        shape, found = self.shape(self.node), []
        axis = self.args[1] if len(self.args) > 1 else 0
        if not isinstance(axis, int) or self.name not in ("aten.cat.default", "aten.stack.default"):
            return self.unknown()
        axis %= len(shape)
        stack = self.name.startswith("aten.stack")
        ways = {
            frozenset(axes(one.unsqueeze(axis) if stack else one))
            for n in nodes
            for one in self.fields(n)
        }
        along = frozenset().union(*(way for way in ways if axis in way))
        for way in {along, *(way for way in ways if axis not in way)} - {frozenset()}:
            parts = {}
            for node in nodes:
                mine = [
                    one
                    for one in self.fields(node)
                    if axes(one.unsqueeze(axis) if stack else one) <= way
                ]
                own = self.shape(node)
                if not mine:
                    inside = [n if (i in way) else 1 for i, n in enumerate(own)]
                    mine = [self.labels.fresh(inside)]
                    self.labels.fix(mine, self.reason)
                mine = self.labels.settle(mine, self.reason) or mine
                parts[node] = mine[0].expand(own)
            out = self.run(parts)
            for i in set(range(len(shape))) - way - {axis}:
                out = out.narrow(i, 0, 1)
            if axis not in way:
                first = parts[nodes[0]]
                for node in nodes[1:]:
                    size = min(first.shape[axis], parts[node].shape[axis])
                    self.labels.unite(
                        first.narrow(axis, 0, size), parts[node].narrow(axis, 0, size)
                    )
                out = out.narrow(axis, 0, 1)
            found.append(narrowed(out))
        return self.labels.settle(found, self.reason)

    def run(self, labels: dict[fx.Node, Tensor]) -> Any:
        """The operation itself, on labels."""
        args, kwargs = fx.map_arg((self.node.args, self.node.kwargs), lambda n: labels[n])
        target: Any = self.node.target
        if target in (aten.view.default, aten._unsafe_view.default):
            target = aten.reshape.default
        return target(*args, **kwargs)

    def split_evenly(self, one: Tensor) -> None:
        """Equal parts may come of a number of parts, so that they must stay equal."""
        sizes = {tuple(part.shape) for part in self.node.meta["val"]}
        axis = self.args[2] if len(self.args) > 2 else 0
        axis %= one.ndim
        if len(sizes) == 1 and axes(one) == {axis} and len(self.node.meta["val"]) > 1:
            rows = one.flatten().view(len(self.node.meta["val"]), -1)
            self.labels.boxes.append(Box(rows, even=True))

    def spatial(self) -> Any:
        """Pooling, scaling: each channel by itself."""
        ndim = len(self.shape(self.args[0]))
        last = {ndim - 1, ndim - 2} if ndim > 3 else {ndim - 1}
        if any(axes(one) & last for one in self.fields(self.args[0])) or "im2col" in self.name:
            return self.unknown()
        found = self.fields(self.args[0])
        return [found, found] if is_several(self.node) else found

    def shuffled(self) -> Fields:
        """Several channels become places of one, so that they go together."""
        block, found = self.args[1] ** 2, []
        for one in self.fields(self.args[0]):
            if axes(one) != {one.ndim - 3}:
                return self.unknown()
            together = one.flatten().view(-1, block)
            self.labels.unite(together[:, :1], together)
            found.append(together[:, 0].view(*[1] * (one.ndim - 3), -1, 1, 1))
        return found

    def padded(self) -> Fields:
        """Zeros around may go as well, as many on each side where they were as many."""
        found, widths = [], self.args[1]
        if len(self.args) > 2 and self.args[2] not in ("constant", 0, 0.0):
            return self.unknown()
        ndim = len(self.shape(self.args[0]))
        for one in self.fields(self.args[0]):
            for axis in axes(one) & {ndim - 1 - i for i in range(len(widths) // 2)}:
                around = widths[2 * (ndim - 1 - axis) :][:2]
                sizes = [[*one.shape[:axis], max(n, 0), *one.shape[axis + 1 :]] for n in around]
                left, right = map(self.labels.fresh, sizes)
                if left.numel() == right.numel() > 0:
                    rows = torch.stack([left.flatten(), right.flatten()])
                    self.labels.boxes.append(Box(rows, even=True))
                one = torch.cat([left, one, right], axis)
            found.append(one)
        return found

    def indexed(self) -> Fields:
        """Picking by tables: the axes that are picked from must stay."""
        source, indices = self.args[0], self.args[1]
        picked = {i for i, index in enumerate(indices) if index is not None}
        shape, found = self.shape(source), []
        for index in indices:
            self.labels.fix(self.fields(index), self.reason)
        for one in self.fields(source):
            if axes(one) & picked:
                self.labels.fix([one], self.reason)
                continue
            zeros = [
                None if index is None else torch.zeros(self.shape(index), dtype=torch.long)
                for index in indices
            ]
            found.append(narrowed(aten.index.Tensor(one.expand(shape), zeros)))
        return found

    def reduced(self) -> Fields:
        """Means and sums over some axes."""
        ndim = len(self.shape(self.args[0]))
        given = self.args[1] if len(self.args) > 1 else None
        if self.name.startswith("aten.linalg_vector_norm"):
            given = self.args[2] if len(self.args) > 2 else None
        given = range(ndim) if given in (None, []) else given
        gone = {axis % ndim for axis in ([given] if isinstance(given, int) else given)}
        keeps = len(self.shape(self.node)) == ndim
        found: Fields = []
        for one in self.fields(self.args[0]):
            for left in self.labels.rows(one, gone):
                found.append(left if keeps else _without(left, gone))
        return found


def _without(one: Tensor, gone: set[int]) -> Tensor:
    """A field without some axes, in all of which it is 1 long."""
    return one.reshape([n for i, n in enumerate(one.shape) if i not in gone])
