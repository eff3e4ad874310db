"""Layers whose weights and inputs are rounded to few bits while they learn, and their bits packed.

What networks of very few bits share: a weight is scale (2 c / (2^bits - 1) - 1), with codes c
from 0 to 2^bits - 1. How codes, scale and inputs come about, and with which gradients, is each
paper's own. Layers multiply and add whole numbers, and scale the sums: these are the same in
whatever order they are added, as long as they stay below 2^24. Source of the bit planes: dorefa
(arXiv 1606.06160, section 2.1).
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.surgery.chains import chains, cover
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.integers import REFUSED
from foveate.surgery.layers import exchange, geometry_of, on_channels, product

REFUSES = {**REFUSED, "masked": "no code stands for zero; begin with a model that is not pruned"}
"""Ways of holding weights that few bits can't start from, each with why."""


class FewBits(nn.Module):
    """What layers of few bits compute, while they learn and after.

    Args:
        geometry, bias: of the layer that it stands for.
        bits: of the weight, or None if that is in float.
        input: makes whole numbers of what the layer takes, each worth its `step`.

    Shapes: as the layer's.
    """

    weights_as = "integers"

    def __init__(self, geometry: dict[str, Any], bias: Any, bits: int | None, input: Any) -> None:
        super().__init__()
        self.geometry, self.bias, self.bits, self.input = geometry, bias, bits, input

    def forward(self, x: Tensor) -> Tensor:
        whole, step = self.whole_and_step()
        y = product(self.input(x), whole, None, self.geometry) * (step * self.input.step)
        return y if self.bias is None else y + on_channels(self.bias, whole).to(y.dtype)

    def whole_and_step(self) -> tuple[Tensor, Tensor | float]:
        """The weight in whole numbers, and what one of these is worth."""
        raise NotImplementedError

    def rounded_weight(self) -> Tensor:
        """The weight that the layer computes with."""
        whole, step = self.whole_and_step()
        return whole * step


class LowBitLayer(FewBits):
    """A convolution or linear layer that computes with few bits, and learns in float.

    Papers write `codes_and_scale`, and give the module that rounds the input.

    Args:
        layer: an nn.Conv2d or nn.Linear; its weight and bias are taken over.
        bits, input: as of `FewBits`.

    Shapes: as the layer's.
    """

    def __init__(self, layer: Any, bits: int | None, input: nn.Module) -> None:
        super().__init__(geometry_of(layer), layer.bias, bits, input)
        self.weight = layer.weight

    def whole_and_step(self) -> tuple[Tensor, Tensor | float]:
        if self.bits is None:
            return self.weight, 1.0
        return whole_and_step(*self.codes_and_scale(self.bits), self.bits)

    def codes_and_scale(self, bits: int) -> tuple[Tensor, Tensor]:
        """The weight's codes, whole numbers of its shape and type, and the scale of all of them,
        both with the paper's gradients."""
        raise NotImplementedError


def whole_and_step(codes: Tensor, scale: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes of so many bits as odd numbers from -(2^bits - 1) to its opposite, of which the last
    is worth the scale, and the worth of 1."""
    return 2 * codes - (2**bits - 1), scale / (2**bits - 1)


class AsItIs(nn.Identity):
    """Leaves an input in float."""

    step = 1.0


def straight(value: Tensor, x: Tensor, slope: Tensor | float = 1.0) -> Tensor:
    """A value that was computed from x, exactly, with a slope of our choice for its gradient."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return value
    return value.detach() + (x - x.detach()) * slope


def demand_bits(field: str, bits: int | None) -> None:
    """Raises: FoveateError if an edit's field is no number of bits from 1 to 8, and not None."""
    if bits is not None and bits not in range(1, 9):
        raise FoveateError(f"{field} is {bits}: give 1 to 8, or none for float")


@dataclass(frozen=True)
class Told:
    """What a coverage table says of a layer that gets few bits.

    Attributes:
        done: of every one, what was done.
        signed, positive: what more there is to say of those that take numbers below zero, and
            of those that never do.
    """

    done: str
    signed: str = ""
    positive: str = ""


def cover_inner(
    edit: Edit, model: nn.Module, data: Images, skip: tuple[str, ...], ends: bool, told: Told
) -> tuple[Plan, list[Covered]]:
    """The plan and coverage of an edit of every layer between the first and the last.

    Args:
        edit, model, data: as `Edit.decide` has them.
        skip: patterns of names that are to be left.
        ends: whether layers that no other comes before, or after, are changed, too.
        told: what the table says of changed layers.
    """
    x = next(edit.batches(data))
    found, signed = chains(model, x), _signed(model, x)
    lines = []
    for line in cover(model, found, skip, lambda chain: told.done):
        if line.changed and not ends and (found[line.name].first or found[line.name].last):
            which = "first" if found[line.name].first else "last"
            line = replace(line, changed=False, why=f"left in float as the {which} layer")
        elif line.changed:
            more = told.signed if line.name in signed else told.positive
            line = replace(line, why=line.why + more)
        lines.append(line)
    return {"layers": [line.name for line in lines if line.changed]}, lines


@torch.no_grad()
def _signed(model: nn.Module, x: Tensor) -> set[str]:
    """The layers that take a number below zero as an input passes."""
    found: set[str] = set()
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):

            def look(layer: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                if (args[0] < 0).any():
                    found.add(name)

            handles.append(layer.register_forward_pre_hook(look))
    was_training = model.training
    try:
        model.eval()(x)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


@dataclass(frozen=True, kw_only=True)
class Pack(Edit):
    """Keep the bits of layers of few bits, and no more than these: the end of their training.

    A weight takes as many bits as it has, eight to a byte, and the model computes what it did.
    What was left in float stays so; `Store` holds that in fewer bits.
    """

    looks_at = "nothing"
    refuses: ClassVar[dict[str, str]] = {"constants": "pack first, and capture the graph then"}

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        lines = []
        for name, module in model.named_modules():
            if isinstance(module, LowBitLayer):
                why = f"packed in {module.bits} bits a weight"
                if module.bits is None:
                    why = "left because its weight is in float"
                lines.append(Covered(name, type(module).__name__, module.bits is not None, why))
        return {"layers": [line.name for line in lines if line.changed]}, lines

    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        return exchange(model, plan["layers"], PackedLayer)


class PackedLayer(FewBits):
    """A layer whose weight is the codes of a `LowBitLayer`, in bit planes, and their scale.

    Args:
        layer: of few bits.

    Shapes: as the layer's.
    """

    planes: Tensor
    scale: Tensor
    bits: int

    @torch.no_grad()
    def __init__(self, layer: LowBitLayer) -> None:
        super().__init__(layer.geometry, layer.bias, layer.bits, layer.input)
        codes, scale = layer.codes_and_scale(self.bits)
        self.shape = codes.shape
        self.register_buffer("planes", pack(codes, self.bits))
        self.register_buffer("scale", scale.clone())

    def whole_and_step(self) -> tuple[Tensor, Tensor]:
        codes = unpack(self.planes, self.shape.numel()).view(self.shape)
        return whole_and_step(codes.to(self.scale.dtype), self.scale, self.bits)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as bit planes: plane m has bit m of each code, eight of them in a byte.

    The product of two vectors of codes is then the sum over planes m and k of 2^(m + k) times
    how many ones `plane m & plane k` has.

    Args:
        codes: of any shape, whole numbers from 0 to 2^bits - 1.

    Returns: uint8 (bits, ceil(codes / 8)), the first code in the lowest bit.
    """
    codes = codes.flatten().to(torch.uint8)
    codes = nn.functional.pad(codes, (0, -len(codes) % 8)).view(-1, 8)
    planes = torch.stack([codes >> m & 1 for m in range(bits)])
    return sum((planes[..., i] << i for i in range(8)), torch.zeros_like(planes[..., 0]))


def unpack(planes: Tensor, count: int) -> Tensor:
    """The opposite of `pack`, for as many codes as there were: uint8 (count,)."""
    ones = torch.stack([planes & 1 << i != 0 for i in range(8)], 2).flatten(1)[:, :count]
    return sum(
        (plane * 2**m for m, plane in enumerate(ones.byte())), torch.zeros_like(planes[0, :1])
    )
