"""What operations that mix channels do with labels: they end some, and begin others."""

from typing import Any

import torch
from torch import Tensor, fx

from foveate.surgery.channels.labels import Box, Fields, aligned, axes
from foveate.surgery.channels.reading import Reading


class Mixing(Reading):
    """End labels, and begin others."""

    def along(self, node: fx.Node, axis: int, others: Any) -> Fields:
        """A value whose one axis meets vectors."""
        ndim = len(self.shape(node))
        sizes = [-1 if i == axis else 1 for i in range(ndim)]
        fields = list(self.fields(node))
        own = [one for one in fields if axis in axes(one)]
        for other in others:
            for one in self.fields(other):
                fields.append(one.view(sizes))
                if not own:
                    self.labels.fix([one], self.reason)
        return self.labels.settle(fields, self.reason)

    def convolution(self) -> Fields:
        source, weight, bias = self.args[:3] if len(self.args) > 2 else (*self.args, None)
        groups = self.args[-1] if len(self.args) in (7, 9) else 1
        is_made = any(len(axes(one)) > 1 for one in self.fields(weight))
        if is_made or (self.name.startswith("aten.convolution") and self.args[6]):
            return self.unknown()
        fields = self.fields(source)
        outputs, inputs = self.shape(weight)[:2]
        held = {min(axes(one)): one.flatten() for one in self.fields(weight)}
        for axis, one in held.items():
            if axis > 1:
                self.labels.fix([one], "it is a place in a kernel")
        taken = [one for one in fields if axes(one) == {1}]
        self.labels.fix([one for one in fields if axes(one) != {1}], self.reason)
        out, into = held.get(0), held.get(1)
        if out is not None and bias is not None:
            self.labels.unite(out, self.fields(bias)[0])
        for one in taken:
            self.meets(one.flatten(), out, into, groups, outputs, inputs)
        if not taken:
            self.labels.fix([one for one in (into,) if one is not None], "it meets the images")
            if groups > 1 and out is not None:
                self.labels.fix([out], self.reason)
        ndim = len(self.shape(self.node))
        return [] if out is None else [out.view(1, -1, *[1] * (ndim - 2))]

    def meets(self, x: Tensor, out: Any, into: Any, groups: int, outputs: int, inputs: int) -> None:
        """What a convolution takes, x, meets its weight."""
        if groups == 1:
            if into is not None:
                self.labels.unite(x, into)
        elif inputs == 1 and out is not None:
            self.labels.unite(x.repeat_interleave(outputs // groups), out)
        elif out is not None:
            rows = torch.cat([x.view(groups, -1), out.view(groups, -1)], 1)
            self.labels.boxes.append(Box(rows, places=into))

    def linear(self) -> Fields:
        source, weight, *bias = self.args
        if any(len(axes(one)) > 1 for one in self.fields(weight)):
            return self.unknown()
        ndim = len(self.shape(source))
        held = {min(axes(one)): one.flatten() for one in self.fields(weight)}
        rest, taken = [], []
        for one in self.fields(source):
            (taken if ndim - 1 in axes(one) else rest).append(one)
        if 1 in held:
            for one in taken:
                self.labels.unite(one, held[1].view(*[1] * (ndim - 1), -1))
            if not taken:
                self.labels.fix([held[1]], self.reason)
        elif taken:
            self.labels.fix(taken, self.reason)
        for one in taken:
            rest += self.labels.rows(one, {ndim - 1}) if len(axes(one)) > 1 else []
        if 0 not in held:
            return rest
        for one in bias:
            for shift in self.fields(one):
                self.labels.unite(held[0], shift)
        return self.labels.settle([*rest, held[0].view(*[1] * (ndim - 1), -1)], self.reason)

    def product(self, a: fx.Node, b: fx.Node) -> Fields:
        """Matrices multiplied, in batches."""
        if len(self.shape(a)) < 2 or len(self.shape(b)) < 2:
            return self.unknown()
        ndim = max(len(self.shape(a)), len(self.shape(b)))
        row, column = ndim - 2, ndim - 1
        left = [aligned(one, ndim) for one in self.fields(a)]
        right = [aligned(one, ndim).transpose(row, column) for one in self.fields(b)]
        inner = self.contracted(left, right, column)
        found = [one for one in left if column not in axes(one)]
        found += [one.transpose(row, column) for one in right if column not in axes(one)]
        return self.labels.settle(found + inner, self.reason)

    def contracted(self, left: Fields, right: Fields, axis: int) -> Fields:
        """Both sides' fields over an axis that is summed away; those of whole rows are left."""
        over = [[one for one in side if axis in axes(one)] for side in (left, right)]
        if not all(over):
            self.labels.fix([*over[0], *over[1]], self.reason)
            return []
        inner = []
        for one in self.labels.settle([*over[0], *over[1]], self.reason):
            inner += self.labels.rows(one, {axis}) if len(axes(one)) > 1 else []
        return inner

    def attention(self) -> Fields:
        """softmax(q k) v, with q (..., L, E), k (..., S, E), v (..., S, F)."""
        q, k, v = self.args[:3]
        ndim = len(self.shape(q))
        row, column = ndim - 2, ndim - 1
        scores = self.contracted(self.fields(q), self.fields(k), column)
        mask = self.args[3] if len(self.args) > 3 else self.node.kwargs.get("attn_mask")
        scores += [aligned(one, ndim) for one in self.fields(mask)]
        for side in (q, k):
            scores += [one for one in self.fields(side) if not axes(one) & {row, column}]
        tokens = [one for n in (q, k, v) for one in self.fields(n) if row in axes(one)]
        self.labels.fix(tokens, self.reason)
        found = [one for one in scores if not axes(one) & {row, column}]
        found += [one for one in self.fields(v) if row not in axes(one)]
        return self.labels.settle(found, self.reason)

    def group_norm(self) -> Fields:
        source, groups, *others = self.args
        found = self.along(source, 1, others[:2])
        for one in found:
            if axes(one) == {1} and groups > 1:
                self.labels.boxes.append(Box(one.flatten().view(groups, -1)))
        return found
