"""Training forms and deployed forms: branches and norms that training needed, folded into one.

A module that has a leaner form says how to take it in a method `merge_branches()`.
"""

from typing import Protocol, runtime_checkable

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

__all__ = ["Mergeable", "fuse_conv_bn_eval", "is_mergeable", "merge"]


@runtime_checkable
class Mergeable(Protocol):
    """What can be folded."""

    def merge_branches(self) -> None:
        """Take the deployed form, in place; nothing happens the second time."""
        ...


def merge(model: nn.Module) -> nn.Module:
    """Fold every module that can be folded, the inner ones first.

    Outputs in evaluation mode stay the same up to rounding; the model can no
    longer be trained as it was meant to be.

    Args:
        model: changed in place, and put in evaluation mode.

    Returns: the same model.
    """
    model.eval()
    for module in reversed(list(model.modules())):
        if isinstance(module, Mergeable):
            module.merge_branches()
    return model


def is_mergeable(model: nn.Module) -> bool:
    """Whether any part of a model has a deployed form."""
    return any(isinstance(module, Mergeable) for module in model.modules())
