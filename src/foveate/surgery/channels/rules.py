"""What each operation does with labels of channels.

Operations that move values are run on the labels themselves; those that mix
channels end some labels and begin others; whatever is not understood fixes the
labels that it meets, and says so.
"""

from typing import Any

import torch
from torch import Tensor, fx

from foveate.surgery.channels.labels import Box, Fields, Labels, aligned, axes, narrowed
from foveate.surgery.graphs import CHECKS, aten, place

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "convolution")
NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)
REDUCTIONS = {
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.amin.default,
    aten.linalg_vector_norm.default,
}
MOVES = {
    getattr(aten, name).default
    for name in (
        *("view", "_unsafe_view", "reshape", "permute", "expand", "unsqueeze", "squeeze"),
        *("cat", "stack", "slice", "roll", "flip", "repeat", "split_with_sizes", "unflatten"),
        *("pixel_unshuffle", "t", "movedim", "channel_shuffle", "tile"),
        *("numpy_T", "expand_as", "view_as", "reshape_as", "index_select", "swapaxes"),
    )
    if hasattr(getattr(aten, name, None), "default")
} | {
    *(aten.transpose.int, aten.flatten.using_ints, aten.squeeze.dim, aten.squeeze.dims),
    *(aten.select.int, aten.slice.Tensor, aten.split.Tensor, aten.unbind.int, aten.chunk.default),
    *(aten.movedim.int, aten.unflatten.int, aten.narrow.default, aten.permute.default),
}
SPATIAL = ("pool", "upsample", "im2col", "reflection_pad", "replication_pad", "interpolate")
CONSTANTS = ("full", "zeros", "ones", "empty", "scalar_tensor")
POINTWISE = {aten.hardswish.default, aten.softmax.int, aten._softmax.default, aten.dropout.default}
POINTWISE |= {aten.alias.default, aten.detach.default, aten._to_copy.default}
POINTWISE |= {
    aten.log_sigmoid.default,
    aten.log_softmax.int,
    aten.cumsum.default,
    aten.native_dropout.default,
}


class Rule:
    """What one operation does with labels.

    Args:
        node: the operation.
        values: fields of every node before it; a list of them where one has several results.
        labels: and what is known of them, to be added to.
    """

    def __init__(self, node: fx.Node, values: dict[fx.Node, Any], labels: Labels) -> None:
        self.node, self.labels, self.values = node, labels, values
        self.name = str(node.target)
        self.args: Any = node.args
        where = place(node)
        self.reason = f"it passes {self.name} in {where}, which ties it to what stays"

    def result(self) -> Any:
        """Fields of what the operation makes."""
        target, name = self.node.target, self.name
        own = name.split(".")[1] if name.startswith("aten.") else name
        if getattr(target, "__name__", "") == "getitem":
            given = self.values[self.args[0]]
            return given[self.args[1]] if _is_several(self.args[0]) else []
        if target in CHECKS or own.startswith("_assert"):
            return []
        if own.startswith(CONSTANTS) or own.endswith(("_like",)) or own.startswith("new_"):
            return []
        if target in MOVES:
            return self.moved()
        if own in CONVOLUTIONS:
            return self.convolution()
        if target in (aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default):
            return self.linear() if own == "linear" else self.product(*self.args[:2])
        if target in NORMS:
            found = self.along(self.args[0], 1, self.args[1:5])
            return [found, [], []] if _is_several(self.node) else found
        if own == "prelu":
            return self.along(self.args[0], 1, self.args[1:])
        if own in ("layer_norm", "rms_norm"):
            return self.pointwise([self.args[0], *self.args[2:4]])
        if own == "group_norm":
            return self.group_norm()
        if own == "scaled_dot_product_attention":
            return self.attention()
        if target in REDUCTIONS or own in ("mean", "sum"):
            return self.reduced()
        if any(word in own for word in SPATIAL):
            return self.spatial()
        if own in ("pad", "constant_pad_nd"):
            return self.padded()
        if own == "pixel_shuffle":
            return self.shuffled()
        if target is aten.index.Tensor:
            return self.indexed()
        if torch.Tag.pointwise in getattr(target, "tags", ()) or target in POINTWISE:
            return self.pointwise(self.node.all_input_nodes)
        return self.unknown()

    # ---------------------------------------------------------------- what is read

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        return tuple(node.meta["val"].shape)

    def fields(self, node: Any) -> Fields:
        return self.values[node] if isinstance(node, fx.Node) else []

    def taken(self) -> Fields:
        """All fields that the operation takes."""
        found: Fields = []
        for given in self.node.all_input_nodes:
            value = self.values[given]
            found += [one for part in value for one in part] if _is_several(given) else value
        return found

    def unknown(self) -> Any:
        self.labels.fix(self.taken(), f"it goes into {self.name}, which is not understood")
        return [[] for _ in self.node.meta["val"]] if _is_several(self.node) else []

    def is_agnostic(self, node: fx.Node) -> bool:
        """Whether a value is the same wherever one looks, so that it fits any size."""
        own = str(node.target)
        if node.op != "call_function" or not own.startswith("aten."):
            return False
        own = own.split(".")[1]
        if own.startswith((*CONSTANTS, "new_")) or own.endswith("_like"):
            return True
        inputs = node.all_input_nodes
        return bool(inputs) and all(map(self.is_agnostic, inputs))

    # ---------------------------------------------------------------- what passes labels on

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
        several = _is_several(self.node)
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
        return [found, found] if _is_several(self.node) else found

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

    # ---------------------------------------------------------------- what mixes channels

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


def _without(one: Tensor, gone: set[int]) -> Tensor:
    """A field without some axes, in all of which it is 1 long."""
    return one.reshape([n for i, n in enumerate(one.shape) if i not in gone])


def _is_several(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), list | tuple)
