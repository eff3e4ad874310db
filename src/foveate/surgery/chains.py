"""Layers and the norms and activations that follow them, seen in one forward pass.

Modules do not say in which order they are called, so every torch function is
watched: which values it takes, and which it makes.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from foveate.errors import FoveateError
from foveate.measure.formulas import tensors
from foveate.surgery.edit import Covered
from foveate.surgery.layers import is_plain_layer, matches, obstacle

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)
MOVES = {"flatten", "reshape", "view", "permute", "transpose", "contiguous", "squeeze"}
MOVES |= {"unsqueeze", "max_pool2d", "relu", "relu_", "__getitem__", "chunk", "split"}
CLIPS = {"max_pool2d", "relu", "relu_"}
AFFINE = {"roll", "mean", "pad", "cat", "dropout", "adaptive_avg_pool2d"}
PRODUCTS = {"linear", "conv2d"}


@dataclass(frozen=True)
class Chain:
    """A convolution or linear layer, and what is done to its output and to nothing else.

    Attributes:
        name: of the layer, as `named_modules` has it.
        layer: itself.
        norm: name of the batch norm that alone takes its output, or None.
        top: where a ReLU that alone takes the output of that cuts off: inf, or
            6 for ReLU6; None if there is none.
        source: name of the layer whose values, moved, pooled by maximum or cut
            off at most, are the input; None if they are computed otherwise.
        shape: of the output of the layer in that pass.
        calls: of the layer in that pass.
        first: whether no layer comes before it.
        last: whether no layer comes after it.
        maker: name of the function that made its input, moved at most, such as "gelu"; ""
            where that is the model's own.
        takers: names of the functions that take its output, behind norm and ReLU; "" is whoever
            calls the model.
        constant: whether its input comes from the model's numbers alone, and from no image.
    """

    name: str
    layer: Any
    norm: str | None
    top: float | None
    source: str | None
    shape: tuple[int, ...]
    calls: int
    first: bool
    last: bool
    maker: str
    takers: frozenset[str]
    constant: bool


@torch.no_grad()
def chains(
    model: nn.Module, x: Tensor, is_layer: Callable[[nn.Module], bool] = is_plain_layer
) -> dict[str, Chain]:
    """Every plain convolution and linear layer that a model calls, in the order of the first calls.

    Args:
        model: run once, in evaluation mode; its mode is restored.
        x: an input of it.
        is_layer: which modules are meant.
    """
    was_training = model.training
    model.eval()
    watch = _Watch(is_layer)
    handles = [h for name, m in model.named_modules() for h in watch.hook(name, m)]
    try:
        with watch:
            watch.taken_out(model(x))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    modules = dict(model.named_modules())
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    ends: dict[int, str] = {}
    found: dict[str, Chain] = {}
    for name, visits in watch.layers.items():
        layer: Any = modules[name]
        before, after = visits[-1]
        norm, top = None, None
        if len(visits) == 1 and len(watch.shapes[after]) == layer.weight.ndim:
            norm, after = watch.norm_of(after, modules)
        if len(visits) == 1:
            top, after = watch.clip_of(after)
        source = watch.source(before, ends) if len(visits) == 1 else None
        takers = watch.takers(after) if len(visits) == 1 else frozenset[str]()
        ends[after] = name
        shape = watch.shapes[visits[-1][1]]
        first, last = watch.is_first(visits), watch.is_last(visits)
        found[name] = Chain(
            *(name, layer, norm, top, source, shape, len(visits), first, last),
            *(watch.maker(before), takers, watch.is_constant(visits, own)),
        )
    return found


@torch.no_grad()
def readers(
    model: nn.Module, x: Tensor, is_source: Callable[[nn.Module], bool]
) -> dict[str, list[str] | None]:
    """The plain layers that take what each source makes, moved or averaged at most.

    Args:
        model: run once, in evaluation mode; its mode is restored.
        x: an input of it.
        is_source: which modules are meant; each takes and makes one tensor.

    Returns: for each source that is called, in the order of the calls, its layers; None if
        anything else takes what it makes, or the source or a layer is called more than once.
    """
    was_training = model.training
    watch = _Watch(lambda module: is_plain_layer(module) or is_source(module))
    modules = dict(model.named_modules())
    handles = [h for name, m in modules.items() for h in watch.hook(name, m)]
    try:
        with watch:
            watch.taken_out(model.eval()(x))
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    takers: dict[int, list[str]] = {}
    for name, visits in watch.layers.items():
        for before, _ in visits:
            takers.setdefault(before, []).append(name)
    found = {}
    for name, visits in watch.layers.items():
        if is_source(modules[name]):
            read = watch.readers(visits[0][1], takers) if len(visits) == 1 else None
            once = read is not None and all(len(watch.layers[reader]) == 1 for reader in read)
            plain = once and read and not any(is_source(modules[reader]) for reader in read)
            found[name] = read if plain else None
    return found


def cover(
    model: nn.Module, found: dict[str, Chain], skip: tuple[str, ...], done: Callable[[Chain], str]
) -> list[Covered]:
    """A line for every convolution and linear layer, of an edit that changes all that it can.

    Args:
        model, found: the model, and its `chains`.
        skip: patterns of names of modules that are to be left.
        done: says what is done to a layer.

    Raises: FoveateError if the model has nothing of a name in `skip`.
    """
    for pattern in skip:
        if not any(matches(name, (pattern,)) for name, _ in model.named_modules()):
            raise FoveateError(f"skip names {pattern!r}, which the model does not have")
    coverage = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            why = obstacle(name, module, skip)
            if not why and name not in found:
                why = "left because the model did not call it"
            line = Covered(name, type(module).__name__, not why, why or done(found[name]))
            coverage.append(line)
    return coverage


def link_of(chain: Chain) -> dict[str, Any]:
    """What an edit's plan keeps of a chain, JSON-ready: an endless `top` is "inf"."""
    top = None if chain.top is None else str(chain.top)
    return {"name": chain.name, "norm": chain.norm, "top": top, "source": chain.source}


def lift_norm(model: nn.Module, name: str | None) -> nn.Module | None:
    """Take the norm of a chain out of its model; an activation that it holds stays.

    Args:
        name: of the norm, or None if the chain has none.

    Returns: the norm, or None.
    """
    if name is None:
        return None
    norm: Any = model.get_submodule(name)
    rest = [getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)]
    model.set_submodule(name, nn.Sequential(*rest) if rest else nn.Identity())
    return norm


@dataclass(frozen=True)
class _Call:
    name: str
    takes: tuple[int, ...]
    makes: tuple[int, ...]
    top: float | None = None


class _Watch(TorchFunctionMode):
    """Numbers the values that a forward pass makes."""

    def __init__(self, is_layer: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.is_layer = is_layer
        self.uses: defaultdict[int, list[_Call]] = defaultdict(list)
        self.made_by: dict[int, _Call] = {}
        self.layers: dict[str, list[tuple[int, int]]] = {}
        self.norms: dict[int, str] = {}
        self.shapes: dict[int, tuple[int, ...]] = {}
        self._numbers: dict[int, int] = {}
        self._alive: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        takes = tuple(self.number(t) for t in (*tensors(args), *tensors(kwargs)))
        out = func(*args, **kwargs)
        results = [args[0]] if name == "__setitem__" else list(tensors(out))
        if results:
            makes = tuple(self.number(t, new=True) for t in results)
            call = _Call(name, takes, makes, _top(name, args, kwargs))
            for value in takes:
                self.uses[value].append(call)
            for value in call.makes:
                self.made_by[value] = call
        return out

    def number(self, tensor: Tensor, new: bool = False) -> int:
        """The number of a value; what is changed in place becomes a new one."""
        if new or id(tensor) not in self._numbers:
            self._alive.append(tensor)
            self._numbers[id(tensor)] = len(self._alive)
            self.shapes[len(self._alive)] = tuple(tensor.shape)
        return self._numbers[id(tensor)]

    def hook(self, name: str, module: nn.Module) -> list[RemovableHandle]:
        """Have a layer or norm tell what it takes and makes."""
        if not (self.is_layer(module) or type(module) in NORMS):
            return []
        takes: list[int] = []

        def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            takes.append(self.number(args[0]))
            if type(module) in NORMS:
                self.norms[takes[-1]] = name

        def after(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if self.is_layer(module):
                self.layers.setdefault(name, []).append((takes[-1], self.number(out)))

        return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]

    def taken_out(self, out: Any) -> None:
        """The model's outputs are used by whoever called it."""
        for tensor in tensors(out):
            self.uses[self.number(tensor)].append(_Call("", (), ()))

    def norm_of(self, value: int, modules: dict[str, nn.Module]) -> tuple[str | None, int]:
        """The norm that alone takes a value, and what it makes of it."""
        name, call = self.norms.get(value), self._only_use(value)
        if name is None or call is None or call.name != "batch_norm":
            return None, value
        norm: Any = modules[name]
        if norm.running_mean is None:
            return None, value
        return name, call.makes[0]

    def clip_of(self, value: int) -> tuple[float | None, int]:
        """Where a ReLU that alone takes a value cuts it off, and what it makes of it."""
        call = self._only_use(value)
        if call is None or call.top is None:
            return None, value
        return call.top, call.makes[0]

    def source(self, value: int, ends: dict[int, str]) -> str | None:
        """The layer whose output, moved at most, is a value."""
        while value not in ends:
            call = self.made_by.get(value)
            if call is None or call.name not in MOVES or len(call.takes) != 1:
                return None
            value = call.takes[0]
        return ends[value]

    def maker(self, value: int) -> str:
        """Name of the function whose result, moved or with dropout at most, is a value."""
        while (call := self.made_by.get(value)) is not None:
            if call.name not in MOVES - CLIPS | {"dropout"} or len(call.takes) != 1:
                return call.name
            value = call.takes[0]
        return ""

    def takers(self, value: int) -> frozenset[str]:
        """Names of the functions that take a value."""
        return frozenset(call.name for call in self.uses[value])

    def readers(self, value: int, takers: dict[int, list[str]]) -> list[str] | None:
        """The layers that take a value, moved or averaged at most, if nothing else does."""
        found, waiting = [], [value]
        while waiting:
            value = waiting.pop(0)
            names = takers.get(value, [])
            calls = [call for call in self.uses[value] if call.name not in PRODUCTS]
            if len(names) + len(calls) != len(self.uses[value]):
                return None
            for call in calls:
                if call.name not in MOVES - CLIPS | AFFINE:
                    return None
                waiting += call.makes
            found += [name for name in names if name not in found]
        return found

    def is_first(self, visits: list[tuple[int, int]]) -> bool:
        """Whether what a layer takes comes from no layer."""
        made = {after for visits in self.layers.values() for _, after in visits}
        return not made & self._behind([visits[0][0]])

    def is_constant(self, visits: list[tuple[int, int]], own: set[int]) -> bool:
        """Whether what a layer takes is made of tensors of these ids alone."""
        behind = self._behind([before for before, _ in visits])
        return all(v in self.made_by or id(self._alive[v - 1]) in own for v in behind)

    def is_last(self, visits: list[tuple[int, int]]) -> bool:
        """Whether what a layer makes goes to no layer."""
        taken = {before for visits in self.layers.values() for before, _ in visits}
        return not taken & _reached(
            visits[-1][1:], lambda v: [made for call in self.uses[v] for made in call.makes]
        )

    def _behind(self, values: list[int]) -> set[int]:
        """All that some values are made of, these included."""
        calls = self.made_by
        return _reached(values, lambda v: calls[v].takes if v in calls else ())

    def _only_use(self, value: int) -> _Call | None:
        uses = self.uses[value]
        return uses[0] if len(uses) == 1 and uses[0].makes else None


def _reached(begin: Iterable[int], neighbours: Callable[[int], Iterable[int]]) -> set[int]:
    """All that can be reached, the beginning included."""
    found, waiting = set(begin), list(begin)
    while waiting:
        new = set(neighbours(waiting.pop())) - found
        found |= new
        waiting += new
    return found


def _top(name: str, args: tuple[Any, ...], fields: dict[str, Any]) -> float | None:
    """Where a ReLU cuts off, if a function with these arguments is one."""
    if name in ("hardtanh", "hardtanh_"):
        low, high = (*args[1:], -1.0, 1.0)[:2]
        return fields.get("max_val", high) if fields.get("min_val", low) == 0 else None
    return {"relu": float("inf"), "relu_": float("inf"), "relu6": 6.0}.get(name)
