"""Optimisers by name, and which parameters decay and learn how fast.

AdamW and SGD take torch's fused steps, one pass over memory instead of a dozen small operations
a parameter: on two cores a third of the time for a network of 4 M parameters. They walk a
parameter, its gradient and its state as these lie in memory, and give wrong weights without a
word where the layouts differ, so layouts are put right before each step.
"""

import difflib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

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
        momentum = {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
        sgd = torch.optim.SGD(groups, lr=rate, weight_decay=decay, fused=True, **momentum)
        return _laid_out(sgd)
    if name == "adamw":
        return _laid_out(torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True))
    options = {"lr": rate, "weight_decay": decay, "momentum": recipe.momentum}
    return _by_name(name, groups, options)


def _laid_out(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimiser; what it walks together comes to lie alike before every step."""
    optimizer.register_step_pre_hook(lambda optimizer, args, kwargs: _lay_out_gradients(optimizer))
    optimizer.register_load_state_dict_post_hook(_lay_out_state)
    return optimizer


def _lay_out_gradients(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = _like(parameter, parameter.grad)


def _lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[name] = _like(parameter, value)


def _like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor, in the layout of the parameter."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)


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
