"""Convolutions and linear layers alike: which are plain, and what they compute."""

import fnmatch
import math
from collections.abc import Callable, Iterable
from typing import Any

from timm.layers import linear
from torch import Tensor, nn
from torch.nn import functional as F


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a module computes what Conv2d or Linear does."""
    plain = (nn.Conv2d.forward, nn.Linear.forward, linear.Linear.forward)
    return isinstance(module, nn.Conv2d | nn.Linear) and type(module).forward in plain


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a part's name is one of some patterns, such as "stages.*.conv1"."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def obstacle(name: str, layer: nn.Module, skip: tuple[str, ...]) -> str:
    """Why an edit of weights must leave a layer, for its coverage table, or "".

    Args:
        name, layer: as `named_modules` has them.
        skip: patterns of names that the edit was told to leave.
    """
    if matches(name, skip):
        return "left because skip names it"
    if not is_plain_layer(layer):
        return "left because its class computes something of its own"
    if getattr(layer, "padding_mode", "zeros") != "zeros":
        return "left because it does not pad with zeros"
    return ""


def exchange(model: nn.Module, names: Iterable[str], make: Callable[[Any], nn.Module]) -> nn.Module:
    """Put what `make` makes of some layers in their places, training where they were training.

    Returns: the model.
    """
    for name in names:
        layer = model.get_submodule(name)
        model.set_submodule(name, make(layer).train(layer.training))
    return model


def geometry_of(layer: nn.Conv2d | nn.Linear) -> dict[str, Any]:
    """What `product` must know of a layer besides its weight."""
    if isinstance(layer, nn.Linear):
        return {}
    return {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}


def product(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: dict[str, Any]) -> Tensor:
    """What a convolution, or with a weight of two axes a linear layer, computes."""
    if weight.ndim == 2:
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, **geometry)


def cut_off(y: Tensor, top: float | None) -> Tensor:
    """What the ReLU behind a layer leaves, if there is one."""
    if top is None:
        return y
    return y.relu() if top == math.inf else y.clamp(0.0, top)


def on_channels(values: Tensor, weight: Tensor) -> Tensor:
    """(outputs,) in the shape that meets the outputs of a layer with this weight."""
    return values.view(-1, 1, 1) if weight.ndim == 4 else values
