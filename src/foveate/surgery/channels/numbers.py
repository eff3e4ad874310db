"""Sizes that modules keep as numbers of their own, and what they become when channels go.

Slicing weights is half of the work: a module also says `out_channels`,
`num_heads` or `split_sizes`, and its forward reshapes by them. Which numbers are
sizes of channels is read off the graph: an operation in a module that was given
64, where 48 stay, tells what a 64 in that module may mean.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import fx, nn

from foveate.surgery.channels.groups import Channels
from foveate.surgery.channels.rules import CONVOLUTIONS
from foveate.surgery.graphs import aten

Numbers = dict[str, dict[str, Any]]
"""Attributes of modules, by the module's name: integers, or lists of them."""

MOST_TRIES = 24
SHAPES = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.expand.default}
SHAPES |= {aten.unflatten.int}
LAYERS = ("linear", "layer_norm", "rms_norm", "group_norm")
KNOWN = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")
KNOWN += ("num_channels", "num_groups", "normalized_shape")
"""Attributes that follow from a module's own weight."""


def options(model: nn.Module, channels: Channels, stays: np.ndarray) -> Iterator[Numbers]:
    """What the modules' numbers may become, the likeliest first.

    Args:
        model: whose channels they are.
        channels: of the model.
        stays: for every label whether it stays.
    """
    sure = _of_weights(model, channels, stays)
    for ancestors in (False, True):
        found = _candidates(model, channels, stays, ancestors)
        kinds = list(dict.fromkeys((type(model.get_submodule(m)), a) for m, a in found))
        ways = [
            max(len(v) for (m, a), v in found.items() if _kind(model, m, a) == k) for k in kinds
        ]
        tries = itertools.product(*(range(n) for n in ways))
        for choice in itertools.islice(sorted(tries, key=sum), MOST_TRIES):
            numbers: Numbers = {module: dict(own) for module, own in sure.items()}
            taken = dict(zip(kinds, choice, strict=True))
            for (module, attribute), values in found.items():
                which = taken[_kind(model, module, attribute)]
                if which < len(values):
                    numbers.setdefault(module, {})[attribute] = values[which]
            yield numbers


def _kind(model: nn.Module, module: str, attribute: str) -> tuple[type, str]:
    return type(model.get_submodule(module)), attribute


def _of_weights(model: nn.Module, channels: Channels, stays: np.ndarray) -> Numbers:
    """The numbers of layers and norms, from the shapes of what stays of their weights."""
    modules = dict(model.named_modules(remove_duplicate=False))
    found: Numbers = {}
    for node in channels.traced.graph.nodes:
        own = str(node.target).removeprefix("aten.").split(".")[0]
        if own not in (*CONVOLUTIONS, *LAYERS) and "batch_norm" not in own:
            continue
        held = [a for a in node.all_input_nodes if a in channels.traced.weights]
        owners = {channels.traced.weights[a].rpartition(".")[0] for a in held}
        if len(owners) != 1:
            continue
        name = owners.pop()
        source: Any = node.args[0]
        taken, made = channels.size(source, stays), _made(channels, node, stays)
        if own in CONVOLUTIONS:
            inside = channels.size(node.args[1], stays)[1]
            said = {"in_channels": taken[1], "out_channels": made[1], "groups": taken[1] // inside}
        elif own == "linear":
            said = {"in_features": taken[-1], "out_features": made[-1]}
        elif own in ("layer_norm", "rms_norm"):
            said = {"normalized_shape": list(taken[-len(node.args[1]) :])}
        elif own == "group_norm":
            said = {"num_channels": taken[1], "num_groups": channels.norm_groups(node, stays)}
        else:
            said = {"num_features": taken[1]}
        module = modules[name]
        new = {k: v for k, v in said.items() if hasattr(module, k) and _differs(module, k, v)}
        if new:
            found.setdefault(name, {}).update(new)
    return found


def _made(channels: Channels, node: fx.Node, stays: np.ndarray) -> tuple[int, ...]:
    several = isinstance(node.meta["val"], list | tuple)
    return channels.size(node, stays, 0 if several else None)


def _differs(module: nn.Module, name: str, value: Any) -> bool:
    old = getattr(module, name)
    return (list(old) if isinstance(old, tuple | list) else old) != value


def _candidates(
    model: nn.Module, channels: Channels, stays: np.ndarray, ancestors: bool
) -> dict[tuple[str, str], list[Any]]:
    """Attributes that equal a size that changes, and what they may become; the last is to stay."""
    modules = dict(model.named_modules(remove_duplicate=False))
    pairs: dict[str, set[tuple[Any, Any]]] = defaultdict(set)
    for node in channels.traced.graph.nodes:
        stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
        for old, new in _sizes(channels, node, stays):
            for path in stack if ancestors else stack[-1:]:
                if path in modules:
                    pairs[path].add((old, new))
    found: dict[tuple[str, str], list[Any]] = {}
    for path, told in pairs.items():
        for name, value in vars(modules[path]).items():
            plain = tuple(value) if isinstance(value, list | tuple) else value
            if name in KNOWN or isinstance(value, bool) or not isinstance(plain, int | tuple):
                continue
            news = sorted({new for old, new in told if old == plain and new != old}, key=str)
            if news:
                may_stay = (plain, plain) in told
                listed = [list(new) if isinstance(new, tuple) else new for new in news]
                found[path, name] = [*listed, plain] if may_stay or ancestors else listed
    return found


def _sizes(channels: Channels, node: fx.Node, stays: np.ndarray) -> Iterator[tuple[Any, Any]]:
    """Sizes that an operation was given, and what they are for what stays."""
    target, args = node.target, node.args
    if node.op != "call_function" or not args:
        return
    if target in SHAPES:
        yield from _lists(node.meta["val"].shape, channels.size(node, stays))
    elif target in (aten.split_with_sizes.default, aten.split.Tensor):
        axis: Any = args[2] if len(args) > 2 else 0
        parts = node.meta["val"]
        new = [channels.size(node, stays, i)[axis] for i in range(len(parts))]
        old = [part.shape[axis] for part in parts]
        yield from _lists(old, new)
        yield sum(old), sum(new)
    elif target is aten.slice.Tensor:
        yield from _ends(channels, node, stays)
    elif target in (aten.pad.default, aten.constant_pad_nd.default):
        yield from _widths(channels, node, stays)
    elif target in (aten.layer_norm.default, aten.rms_norm.default):
        source: Any = args[0]
        normed: Any = args[1]
        yield from _lists(normed, channels.size(source, stays)[-len(normed) :])


def _lists(old: Any, new: Any) -> Iterator[tuple[Any, Any]]:
    yield tuple(old), tuple(new)
    yield from zip(old, new, strict=True)


def _ends(channels: Channels, node: fx.Node, stays: np.ndarray) -> Iterator[tuple[int, int]]:
    """Where a slice begins and ends."""
    source, axis, *ends = node.args
    assert isinstance(source, fx.Node)
    assert isinstance(axis, int)
    inside = _along(channels, source, axis, stays)
    for end in ends[:2]:
        if isinstance(end, int) and 0 < end <= len(inside):
            yield end, int(inside[:end].sum())


def _widths(channels: Channels, node: fx.Node, stays: np.ndarray) -> Iterator[tuple[int, int]]:
    """How much is set around."""
    widths: Any = node.args[1]
    ndim = len(node.meta["val"].shape)
    for i in range(0, len(widths), 2):
        inside = _along(channels, node, ndim - 1 - i // 2, stays)
        before, after = (max(width, 0) for width in widths[i : i + 2])
        yield before, int(inside[:before].sum())
        yield after, int(inside[len(inside) - after :].sum())


def _along(channels: Channels, node: fx.Node, axis: int, stays: np.ndarray) -> np.ndarray:
    """Which slices along an axis stay, in part at least."""
    mask, shape = channels.mask(node, stays), node.meta["val"].shape
    axis %= len(shape)
    if mask is None:
        return np.ones(shape[axis], bool)
    rows = mask.movedim(axis, 0).flatten(1).any(1)
    return rows.expand(shape[axis]).numpy()
