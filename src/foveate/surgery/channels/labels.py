"""Labels of channels, and what is known of them: which go together, which must stay, and why.

Every slice of every weight along every axis has a label, a number of its own. A
value in a network carries *fields*: arrays of labels that broadcast to its
shape. An element of the value goes when the label of any of its fields goes. So
a map (B, C, H, W) has one field (1, C, 1, 1); split into attention heads a value
(B, N, heads, dims) has one field (1, 1, heads, dims) that varies in two axes at
once; a weight (O, I, 3, 3) has one field for each of its four axes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

Fields = list[Tensor]


@dataclass(frozen=True)
class Box:
    """Labels of which those that stay must fill a box again: the same number in each row.

    Attributes:
        labels: of two axes or more; rows are the last axis but one.
        whole: (rows, ...) labels that go exactly when all of their row goes, or None.
        places: labels of the first columns, that go exactly when all of those go, or None.
        even: rows are equal parts of something, and how many there are must not change.
    """

    labels: Tensor
    whole: Tensor | None = None
    places: Tensor | None = None
    even: bool = False

    def columns(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs to unite so that the same places of all rows go together."""
        first = self.labels.narrow(-2, 0, 1)
        pairs = [(first.expand_as(self.labels), self.labels)]
        if self.places is not None:
            pairs.append((self.places, first.flatten()[: len(self.places)]))
        return pairs

    def rows(self) -> list[tuple[Tensor, Tensor]]:
        """Pairs to unite so that each row goes as a whole."""
        rows = self.labels.movedim(-2, 0).flatten(1)
        pairs = [(rows[:, :1].expand_as(rows), rows)]
        if self.whole is not None:
            whole = self.whole.flatten(1)
            pairs.append((rows[:, :1].expand_as(whole), whole))
        return pairs

    def must_stay(self, by_rows: bool) -> Tensor | None:
        """Labels that must stay where rows, or columns, go together."""
        return self.places if by_rows else self.whole

    def allows(self, stays: np.ndarray) -> bool:
        """Whether what stays, by label, fills a box."""
        inside = stays[self.labels.numpy()]
        shape = box_shape(inside)
        if shape is None or 0 in shape:
            return False
        if self.even and shape[-2] != inside.shape[-2]:
            return False
        rows = np.moveaxis(inside, -2, 0).reshape(inside.shape[-2], -1)
        if self.whole is not None:
            whole = stays[self.whole.flatten(1).numpy()]
            if not np.equal(whole, rows.any(1, keepdims=True)).all():
                return False
        if self.places is None:
            return True
        places = stays[self.places.numpy()]
        return bool((rows[rows.any(1), : len(places)] == places).all())


def box_shape(stays: np.ndarray) -> tuple[int, ...] | None:
    """The shape of what stays of an array if it fills a box; (0, ...) if nothing stays."""
    if stays.ndim == 1:
        return (int(stays.sum()),)
    inner = {box_shape(part) for part in stays if part.any()}
    if len(inner) > 1 or None in inner:
        return None
    rest = inner.pop() if inner else (0,) * (stays.ndim - 1)
    assert rest is not None
    return (int(stays.any(axis=tuple(range(1, stays.ndim))).sum()), *rest)


@dataclass
class Labels:
    """All labels of a network, and what was found out about them.

    Attributes:
        count: of labels so far.
        same: pairs of arrays of labels that go together, element by element.
        fixed: arrays of labels that must stay, with the reason.
        boxes: what must stay rectangular.
        ties: pairs of arrays of labels of which as many must stay.
    """

    count: int = 0
    same: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    fixed: list[tuple[Tensor, str]] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    ties: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def fresh(self, shape: Any) -> Tensor:
        """New labels in an array of a shape."""
        size = int(np.prod(shape)) if len(shape) else 1
        self.count += size
        return torch.arange(self.count - size, self.count).view(*shape)

    def of_axes(self, shape: Any) -> Fields:
        """A field of new labels for each axis of more than one slice."""
        sizes = [[n if i == j else 1 for j in range(len(shape))] for i, n in enumerate(shape)]
        return [self.fresh(size) for n, size in zip(shape, sizes, strict=True) if n > 1]

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Labels of two arrays that broadcast go together."""
        self.same.append(tuple(torch.broadcast_tensors(a, b)))  # pyright: ignore

    def fix(self, fields: Fields, reason: str) -> None:
        """All of these must stay."""
        self.fixed += [(one, reason) for one in fields]

    def settle(self, fields: Fields, reason: str) -> Fields:
        """One value's fields where several meet: those that vary alike go together."""
        kept: Fields = []
        for one in sorted(fields, key=lambda f: -len(axes(f))):
            for other in kept:
                if axes(one) == axes(other):
                    self.unite(one, other)
                elif axes(one) < axes(other):
                    self.boxes.append(Box(*_rows(other, axes(one)), one.reshape(-1, 1)))
                elif common := axes(one) & axes(other):
                    self.share_rows(one, other, common)
                    continue
                else:
                    continue
                break
            else:
                if axes(one):
                    kept.append(one)
        return kept

    def share_rows(self, one: Tensor, other: Tensor, common: set[int]) -> None:
        """Two fields vary in some axes alike: the same slices of those go from both.

        So scores between what attention heads hold of channels (heads, dims, dims) have
        a field (heads, dims, 1) and a field (heads, 1, dims), of which the same heads go.
        """
        shape = [n if i in common else 1 for i, n in enumerate(one.shape)]
        whole = self.fresh(shape).reshape(-1, 1)
        self.boxes += [Box(*_rows(each, common), whole) for each in (one, other)]

    def tie(self, a: Tensor, b: Tensor) -> None:
        """As many of two arrays of the same size must stay."""
        self.ties.append((a.flatten(), b.flatten()))

    def untied(self, component: np.ndarray) -> list[tuple[Tensor, Tensor]]:
        """Pairs to unite so that ties hold, where the sets of `components` don't see to it."""
        pairs = []
        for a, b in self.ties:
            ours, theirs = (np.sort(component[side.numpy()]) for side in (a, b))
            if not np.array_equal(ours, theirs):
                pairs.append((a, b))
        return pairs

    def rows(self, one: Tensor, gone: set[int]) -> Fields:
        """What a field leaves where some of its axes are summed away: labels of whole rows."""
        left = axes(one) - gone
        if not left or not axes(one) & gone:
            return [one] if left else []
        matrix = _rows(one, left)[0]
        shape = [n if i in left else 1 for i, n in enumerate(one.shape)]
        whole = self.fresh(shape)
        self.boxes.append(Box(matrix, whole.reshape(-1, 1)))
        return [whole]

    def components(self, more: list[tuple[Tensor, Tensor]] = ()) -> np.ndarray:  # pyright: ignore
        """The number of the set that each label belongs to: sets go together or stay."""
        pairs = [*self.same, *more]
        if not pairs:
            return np.arange(self.count)
        a, b = (torch.cat([pair[i].flatten() for pair in pairs]).numpy() for i in (0, 1))
        graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(self.count, self.count))
        return connected_components(graph, directed=False)[1]


def axes(one: Tensor) -> set[int]:
    """The axes that a field varies in."""
    return {i for i, n in enumerate(one.shape) if n > 1}


def narrowed(one: Tensor) -> Tensor:
    """A field with each axis that it does not vary in made 1 long."""
    for i, n in enumerate(one.shape):
        first = one.narrow(i, 0, 1)
        if n > 1 and bool((one == first).all()):
            one = first
    return one


def aligned(one: Tensor, ndim: int) -> Tensor:
    """A field with axes of 1 in front, as broadcasting has them."""
    return one.reshape(*[1] * (ndim - one.ndim), *one.shape)


def _rows(one: Tensor, kept: set[int]) -> tuple[Tensor]:
    """A field as (rows, columns), rows being some of its axes."""
    order = [*sorted(kept), *(i for i in range(one.ndim) if i not in kept)]
    rows = int(np.prod([one.shape[i] for i in kept]))
    return (one.permute(*order).reshape(rows, -1),)
