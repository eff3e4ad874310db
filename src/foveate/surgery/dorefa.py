"""DoReFa: weights and activations of any number of bits, down to one, in training and after it.

Source: dorefa (arXiv 1606.06160, sections 2.2 to 2.4 and 2.6). Checked against the authors' code,
the DoReFa-Net example of tensorpack (Apache-2.0).
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.layers import exchange
from foveate.surgery.low_bits import (
    REFUSES,
    AsItIs,
    LowBitLayer,
    Told,
    cover_inner,
    demand_bits,
    straight,
)

Bound = Literal["clip", "absolute"]


@implements("dorefa")
@dataclass(frozen=True, kw_only=True)
class DoReFa(Edit):
    """Give layers weights of few bits, and inputs of few bits, to be trained so.

    Train the edited model, with `LowBitGradients` if gradients are to have few bits as well, and
    `Pack` it. An input is bounded to [0, 1] first, so layers want a ReLU before them, best behind
    a norm; where the network has none, what is negative is lost.

    Args:
        weight_bits, activation_bits: 1 to 8, or None for float; not both None.
        bound: how inputs come into [0, 1]: "clip" cuts them off at both ends, "absolute" takes
            magnitudes, cut off at 1.
        ends: change the first and the last layer, too.
        skip: names of layers to leave as they are, or patterns of them.

    Raises: FoveateError that names the field.
    """

    weight_bits: int | None = 1
    activation_bits: int | None = 2
    bound: Bound = "clip"
    ends: bool = False
    skip: tuple[str, ...] = ()

    looks_at = "shapes"
    refuses = REFUSES

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits"):
            demand_bits(field, getattr(self, field))
        if self.weight_bits is None and self.activation_bits is None:
            raise FoveateError("weight_bits and activation_bits are none: give bits of one of them")
        if self.bound not in ("clip", "absolute"):
            raise FoveateError(f"bound is {self.bound!r}: give clip or absolute")

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        weight, activation = (
            "float" if bits is None else f"{bits}-bit"
            for bits in (self.weight_bits, self.activation_bits)
        )
        told = Told(f"{weight} weights, {activation} inputs")
        if self.activation_bits and self.bound == "clip":
            told = replace(told, signed="; what is negative of these is lost")
        return cover_inner(self, model, data, self.skip, self.ends, told)

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return exchange(model, plan["layers"], lambda layer: DoReFaLayer(layer, self))


@implements("dorefa")
class DoReFaLayer(LowBitLayer):
    """A convolution or linear layer whose weight lies on 2^k numbers that are evenly apart.

    With one bit, these are the signs times the mean magnitude, and gradients pass as if nothing
    had happened. With more, they span [-1, 1], and tanh brings the weight there.

    Args:
        layer: an nn.Conv2d or nn.Linear.
        how: bits and bound.

    Shapes: as the layer's.
    """

    def __init__(self, layer: Any, how: DoReFa) -> None:
        bits = how.activation_bits
        rounds = AsItIs() if bits is None else RoundInput(bits, how.bound)
        super().__init__(layer, how.weight_bits, rounds)

    def codes_and_scale(self, bits: int) -> tuple[Tensor, Tensor]:
        weight = self.weight
        if bits == 1:
            mean = mean_magnitude(weight.detach()).clamp(min=torch.finfo(weight.dtype).tiny)
            return straight((weight >= 0).to(weight.dtype), weight, 0.5 / mean), mean
        bent = weight.tanh()
        largest = bent.abs().amax().clamp(min=torch.finfo(weight.dtype).tiny)
        return quantise_unit(bent / largest * 0.5 + 0.5, bits), weight.new_ones(())


@implements("dorefa")
class RoundInput(nn.Module):
    """Bounds its input to [0, 1], and says how many steps of 1 / (2^bits - 1) that is.

    Gradients pass straight through the rounding, and not at all where the bound cut off.

    Attributes:
        step: what 1 is worth.

    Shapes: any, to the same.
    """

    def __init__(self, bits: int, bound: Bound = "clip") -> None:
        super().__init__()
        self.bits, self.bound, self.step = bits, bound, 1 / (2**bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        bounded = x.clamp(0, 1) if self.bound == "clip" else x.abs().clamp(max=1)
        return quantise_unit(bounded, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, bound={self.bound!r}"


@implements("dorefa")
def quantise_unit(x: Tensor, bits: int) -> Tensor:
    """round((2^bits - 1) x) of numbers in [0, 1], with the gradient of what is rounded.

    The paper divides this by 2^bits - 1 at once; here layers do, once they have added up.
    """
    place = x * (2**bits - 1)
    return straight(place.round(), place)


def mean_magnitude(weight: Tensor) -> Tensor:
    """The mean of absolute values, the same in whatever order a memory layout has them."""
    return weight.abs().mean(dtype=torch.float64).to(weight.dtype)
