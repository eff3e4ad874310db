"""Optimisers by name, and which parameters decay and learn how fast."""

import difflib
import inspect
from typing import Any

import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.train.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser that a recipe names, over a model's parameters in groups.

    Every group has `scale`, the factor on the learning rate that layer-wise
    decay gives it.

    Raises: FoveateError with near names if there is no such optimiser.
    """
    groups = parameter_groups(model, recipe)
    name = recipe.optimizer.lower()
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if name == "sgd":
        return torch.optim.SGD(
            groups, lr=rate, weight_decay=decay, momentum=recipe.momentum, nesterov=True
        )
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    options = {"lr": rate, "weight_decay": decay, "momentum": recipe.momentum}
    return _by_name(name, groups, options)


def _by_name(
    name: str, groups: list[dict[str, Any]], options: dict[str, Any]
) -> torch.optim.Optimizer:
    import timm.optim

    known_to_timm: list[str] = [str(key) for key in timm.optim.list_optimizers()]  # pyright: ignore
    theirs = {
        key.lower(): value
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    }
    make: Any
    if name in known_to_timm:
        make = timm.optim.get_optimizer_class(name, bind_defaults=True)  # pyright: ignore
    elif name in theirs:
        make = theirs[name]
    else:
        near = difflib.get_close_matches(name, [*known_to_timm, *theirs], 3)
        raise FoveateError(
            f"there is no optimiser {name!r}: choose adamw, sgd, muon or another of timm's"
            + (f", such as {', '.join(near)}" if near else "")
        )
    known = inspect.signature(getattr(make, "func", make)).parameters
    return make(groups, **{key: value for key, value in options.items() if key in known})


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters in groups that share decay and learning rate, in a fixed order.

    Vectors (norms, biases, scales) and what the backbone's `no_weight_decay`
    names do not decay.
    """
    from foveate.backbones import layer_groups, no_weight_decay

    backbone = model.get_submodule("backbone")
    spared = {f"backbone.{name}" for name in no_weight_decay(backbone)}
    depth: dict[str, int] = {}
    layers = layer_groups(backbone) if recipe.layer_decay < 1 else []
    for i, names in enumerate(layers):
        depth.update({f"backbone.{name}": i for name in names})
    groups: dict[tuple[bool, int], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and name not in spared
        layer = depth.get(name, len(layers) - 1)
        scale = recipe.layer_decay ** (len(layers) - 1 - layer) if layers else 1.0
        group = groups.setdefault((decays, layer), {"params": [], "scale": scale})
        group["params"].append(parameter)
        if not decays:
            group["weight_decay"] = 0.0
    return list(groups.values())
