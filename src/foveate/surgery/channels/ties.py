"""Sizes that a network's Python reads off one value and gives to another.

`B, N, C = x.shape` and, after attention, `y.reshape(B, N, C)`: what comes out of the
heads must be as wide as what went in. A graph holds only the number; so while it is
captured, sizes know which value they were read off, and where one of them shapes
another value, the graph gets an operation that says so and changes nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

SHAPED = ("reshape", "view", "expand", "unflatten")
READS = Tensor.shape.__get__  # pyright: ignore


class Size(int):
    """A number that was read off a value.

    Attributes:
        source: the value.
        axis: of the value.
        parts: the number is this part of the axis: 1 for the whole.
    """

    source: Tensor
    axis: int
    parts: int

    @classmethod
    def of(cls, number: int, source: Tensor, axis: int, parts: int = 1) -> "Size":
        size = cls(number)
        size.source, size.axis, size.parts = source, axis, parts
        return size

    def __floordiv__(self, other: int) -> int:
        number = int(self) // other
        if type(other) is int and other > 0 and number * other == int(self):
            return Size.of(number, self.source, self.axis, self.parts * other)
        return number


@torch.library.custom_op("foveate::tie", mutates_args=())
def tie(value: Tensor, source: Tensor, axes: list[int], axis: int) -> Tensor:
    """The value. Some axes of it, one after the other, are together as long as the source's.

    Args:
        value, source: any shapes.
        axes: of the value.
        axis: of the source.
    """
    return value.clone()


@tie.register_fake
def _(value: Tensor, source: Tensor, axes: list[int], axis: int) -> Tensor:
    return torch.empty_like(value)


@contextmanager
def tied(model: nn.Module) -> Iterator[None]:
    """A model whose forward, for a while, notes its ties."""
    forward: Callable[..., Any] = model.forward

    @wraps(forward)
    def noting(*args: Any, **kwargs: Any) -> Any:
        with _Sizes():
            return forward(*args, **kwargs)

    own = vars(model).get("forward")
    vars(model)["forward"] = noting
    try:
        yield
    finally:
        del vars(model)["forward"]
        if own is not None:
            vars(model)["forward"] = own


class _Sizes(TorchFunctionMode):
    """Lets sizes know where they were read, and notes where they are used."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if func in (READS, Tensor.size):
            return _known(args[0], func(*args, **(kwargs or {})), args[1:], kwargs or {})
        plain_args, plain_kwargs = pytree.tree_map_only(Size, int, (args, kwargs or {}))
        out = func(*plain_args, **plain_kwargs)
        if name not in SHAPED or not isinstance(out, Tensor):
            return out
        given = [s for s in pytree.tree_leaves(args[1:]) if isinstance(s, int)]
        if name == "unflatten":
            given = [1] * args[1] + given[1:]
        for place, size in enumerate(given[: out.ndim]):
            if isinstance(size, Size) and not place == size.axis == 0:
                axes = _axes(out, place, size)
                if axes:
                    out = tie(out, size.source, axes, size.axis)
        return out


def _known(source: Tensor, read: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What was read of a value's shape, as sizes that know it."""
    if isinstance(read, int):
        axis = args[0] if args else kwargs["dim"]
        return Size.of(read, source, axis % source.ndim) if type(read) is int else read
    if all(type(number) is int for number in read):
        return torch.Size([Size.of(number, source, i) for i, number in enumerate(read)])
    return read


def _axes(out: Tensor, place: int, size: Size) -> list[int]:
    """Axes of what was shaped that are together as long as the axis that a size was read off."""
    if size.parts == 1:
        return [place]
    beside = [i for i in (place - 1, place + 1) if 0 <= i < out.ndim and out.shape[i] == size.parts]
    return sorted([place, beside[0]]) if beside else []
