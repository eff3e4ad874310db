"""TrAct: the first layer takes the steps that its activations ask for.

Source: tract (TrAct: Making First-layer Pre-Activations Trainable, NeurIPS 2024, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.train.ingredients import Ingredient

if TYPE_CHECKING:
    from foveate.train.loop import Training

PATCHES = 65_536


@implements("tract")
class TrAct(Ingredient):
    """Replace the first layer's gradient G by G (X^T X / b + λ I)^-1.

    This is the change of weights whose activations come nearest to a step of
    gradient descent on the activations themselves: colours that vary little move
    the activations little, and so their weights must move more. Forward pass,
    optimiser and all other layers stay as they are.

    Args:
        damping: λ.
        layer: name of the layer in the backbone; by default its first convolution.

    Raises: FoveateError if there is no such layer, or it is grouped.
    """

    def __init__(self, damping: float = 0.1, layer: str | None = None) -> None:
        if damping <= 0:
            raise FoveateError(f"damping is {damping}: give more than 0")
        self.damping, self._name = damping, layer
        self._layer: Any = None
        self._moment: Tensor | None = None

    def start(self, training: Training) -> None:
        if self._layer is None:
            self._layer = _first_layer(training.model.backbone, self._name)
            self._layer.register_forward_pre_hook(self._look)

    def gradients(self, training: Training) -> None:
        gradient = self._layer.weight.grad
        if gradient is None or self._moment is None:
            return
        moment = training.world.mean(self._moment)
        gradient.copy_(precondition(gradient, moment, self.damping))
        self._moment = None

    def _look(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if layer.training:
            with torch.no_grad():
                self._moment = second_moment(self._layer, inputs[0])


def second_moment(layer: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor:
    """X^T X / b of what a layer's weights are multiplied with.

    Args:
        layer: a linear layer, or a convolution whose patches count as rows of X.
        x: its input.

    Returns: float32 (n, n), with n weights for each output.
    """
    if isinstance(layer, nn.Conv2d):
        rows = F.unfold(x.float(), layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # pyright: ignore[reportArgumentType]
        rows = rows.transpose(1, 2).flatten(0, 1)
        rows = rows[:: max(1, len(rows) // PATCHES)]
    else:
        rows = x.float().flatten(0, -2)
    return rows.T @ rows / len(rows)


def precondition(gradient: Tensor, moment: Tensor, damping: float) -> Tensor:
    """G (M + λ I)^-1, in the gradient's shape.

    Args:
        gradient: (outputs, ...), n numbers for each output.
        moment: M, (n, n).
        damping: λ.
    """
    damped = moment + damping * torch.eye(len(moment), device=moment.device)
    solved = torch.linalg.solve(damped, gradient.float().flatten(1).T).T
    return solved.reshape(gradient.shape).to(gradient.dtype)


def _first_layer(backbone: nn.Module, name: str | None) -> nn.Conv2d | nn.Linear:
    name = name or (getattr(backbone, "default_cfg", None) or {}).get("first_conv")
    modules = dict(backbone.named_modules())
    layer = modules.get(name or "")
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise FoveateError(
            f"TrAct finds no convolution or linear layer {name!r} in {type(backbone).__name__}: "
            "give the name of its first layer"
        )
    if isinstance(layer, nn.Conv2d) and layer.groups != 1:
        raise FoveateError(f"TrAct cannot work on {name!r}, which is grouped: give another layer")
    return layer
