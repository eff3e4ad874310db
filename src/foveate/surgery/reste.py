"""ReSTE: binary weights and inputs, whose gradients are those of a power function that nears sign.

Source: reste (arXiv 2308.06689). Formulas were checked against the authors' code
(github.com/DravenALG/ReSTE, which names no licence); the paper's own text was not at hand.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.dorefa import mean_magnitude
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import exchange
from foveate.surgery.low_bits import REFUSES, AsItIs, LowBitLayer, Told, cover_inner, straight


@implements("reste")
@dataclass(frozen=True, kw_only=True)
class Binarise(Edit):
    """Give layers weights of one bit, and inputs of one bit, to be trained so.

    Train the edited model with `RaisePower`, and `Pack` it; without, it trains with the plain
    straight-through estimator. Binary networks have their ReLUs before their norms, as the
    authors' have, so that inputs have both signs. Behind a ReLU an input is 0 or 1, and no
    gradient reaches what the ReLU cut off.

    Args:
        activations: binarise inputs as well as weights.
        clip: t, beyond which gradients are zero.
        near: m, within which slopes are that of the line through f(m), as the power function's
            own go to infinity at zero.
        ends: change the first and the last layer, too.
        skip: names of layers to leave as they are, or patterns of them.

    Raises: FoveateError unless 0 < near < clip.
    """

    activations: bool = True
    clip: float = 1.5
    near: float = 0.1
    ends: bool = False
    skip: tuple[str, ...] = ()

    looks_at = "shapes"
    refuses = REFUSES

    def __post_init__(self) -> None:
        if not 0 < self.near < self.clip:
            raise FoveateError(f"near is {self.near} and clip {self.clip}: give 0 < near < clip")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        told = Told(f"binary weights, {'binary' if self.activations else 'float'} inputs")
        if self.activations:
            told = replace(told, positive="; they are never negative, so they become 0 and 1")
        return cover_inner(self, model, data, self.skip, self.ends, told)

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return exchange(model, plan["layers"], lambda layer: BinaryLayer(layer, self))


@implements("reste")
class BinaryLayer(LowBitLayer):
    """A convolution or linear layer whose weight is its signs times their mean magnitude.

    The mean is learnt with, as the authors do: its gradient passes to every weight.

    Args:
        layer: an nn.Conv2d or nn.Linear.
        how: what is binarised, and the ends of the slopes.

    Shapes: as the layer's.
    """

    def __init__(self, layer: Any, how: Binarise) -> None:
        super().__init__(layer, 1, Sign(how.clip, how.near) if how.activations else AsItIs())
        self.sign = Sign(how.clip, how.near)

    def codes_and_scale(self, bits: int) -> tuple[Tensor, Tensor]:
        slope = self.sign.slope(self.weight)
        code = (self.weight >= 0).to(self.weight.dtype)
        return straight(code, self.weight, slope / 2), mean_magnitude(self.weight)


@implements("reste")
class Sign(nn.Module):
    """Signs, with the gradient of f(z) = sign(z) |z|^(1/o) between `near` and `clip`.

    Args:
        clip, near: as `Binarise` has them.

    Attributes:
        step: what 1 is worth, which is 1.
        power: o, 1 or more. With 1 this is the straight-through estimator, cut off at `clip`.

    Shapes: any, to the same; zero stays zero.
    """

    step = 1.0

    def __init__(self, clip: float = 1.5, near: float = 0.1) -> None:
        super().__init__()
        self.clip, self.near, self.power = clip, near, 1.0

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return x.sign()
        return straight(x.sign(), x, self.slope(x))

    @torch.no_grad()
    def slope(self, x: Tensor) -> Tensor:
        """What gradients are multiplied by: of x's shape."""
        size = x.abs()
        inner = size.clamp(min=self.near)
        slope = inner.pow(1 / self.power - 1) / self.power
        slope = torch.where(size <= self.near, self.near ** (1 / self.power - 1), slope)
        return slope.masked_fill_(size > self.clip, 0)

    def extra_repr(self) -> str:
        return f"clip={self.clip}, near={self.near}"


@implements("reste")
def root(x: Tensor, power: float) -> Tensor:
    """f(z) = sign(z) |z|^(1/o), which is z at o = 1 and nears sign(z) as o grows."""
    return x.sign() * x.abs().pow(1 / power)


@implements("reste")
def estimating_error(x: Tensor, power: float) -> float:
    """How far f lies from sign: the L2 norm of sign(x) - f(x) over all numbers of x."""
    return (x.sign() - root(x, power)).norm().item()


@implements("reste")
def gradient_variance(gradient: Tensor) -> float:
    """How unstable gradients are: the variance of their magnitudes."""
    return gradient.abs().var().item()
