"""Runs of convolutions without activations become one convolution each."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from foveate.catalog import implements
from foveate.errors import FoveateError
from foveate.surgery.chains import lift_norm
from foveate.surgery.depth_compression_dp.calls import Call, change, only
from foveate.surgery.depth_compression_dp.deactivate import waiting
from foveate.surgery.edit import Covered, Edit, Images, Plan
from foveate.surgery.kernels import Kernel
from foveate.surgery.layers import is_plain_layer
from foveate.surgery.lineage import Step


@implements("depth_compression_dp")
@dataclass(frozen=True)
class MergeRuns(Edit):
    """Merge what `Deactivate` has prepared: kernels, batch norms and residual connections.

    Outputs in evaluation mode stay the same up to rounding, at the borders, too. Kernels are
    computed in float64. What `Deactivate` chose is read in the model's lineage.

    Raises: FoveateError if the model went through no `Deactivate`, or its layers were changed.
    """

    looks_at = "nothing"
    refuses: ClassVar[dict[str, str]] = {
        "integers": "they cannot be multiplied with each other; merge before",
        "masked": "merged kernels have no zeros; merge before masks are chosen",
        "constants": "it has no modules any more; merge before",
    }

    def decide(self, model: nn.Module, data: Images) -> tuple[Plan, list[Covered]]:
        pieces = [piece for step in waiting(model) for piece in _named(step)]
        if not pieces:
            raise FoveateError(
                "MergeRuns merges what Deactivate has prepared, which this model has not gone "
                "through since it was last merged: apply Deactivate before"
            )
        coverage = []
        for piece in pieces:
            for number, name in enumerate(piece["convs"]):
                _demand_as_prepared(model, name, piece["padding"] if number == 0 else [0, 0])
            first, *others = piece["convs"]
            why = f"one convolution with {', '.join(others)}"
            coverage.append(Covered(first, "Conv2d", True, why))
            coverage += [Covered(name, "Conv2d", True, f"part of {first}") for name in others]
        return {"pieces": pieces}, coverage

    @torch.no_grad()
    def rebuild(self, model: nn.Module, plan: Plan) -> nn.Module:
        changes = []
        for piece in plan["pieces"]:
            first, *others = piece["convs"]
            dtype = model.get_parameter(f"{first}.weight").dtype
            merged = merged_kernel(model, piece).layer(dtype)
            merged.train(model.get_submodule(first).training)
            model.set_submodule(first, merged)
            for name in others:
                model.set_submodule(name, nn.Identity())
            for name in piece["norms"]:
                lift_norm(model, name)
            for added in piece["adds"]:
                changes.append((Call(**added["call"]), only(1 - added["operand"])))
        return change(model, changes)


def merged_kernel(model: nn.Module, piece: dict[str, Any]) -> Kernel:
    """The one kernel of a piece of a plan of `Deactivate`, in float64.

    What stands at each position is a kernel over what the piece takes, without padding: the next
    convolution follows it, and what is added is another position's, a few taps further inside.
    """
    layers: list[Any] = [model.get_submodule(name) for name in piece["convs"]]
    known = [Kernel.identity(layers[0])]
    for position, (layer, norm) in enumerate(zip(layers, piece["norms"], strict=True), 1):
        own = Kernel.of(layer)
        if position == 1:
            own = own.padded((0, 0))
        kernel = known[-1].then(own)
        assert kernel is not None
        if norm is not None:
            kernel = kernel.scaled(*_scale_and_shift(model.get_submodule(norm)))
        for added in piece["adds"]:
            if added["to"] == position:
                high, wide = added["tap"]
                kernel = kernel.plus_inside(known[added["from"]], (high, wide))
        known.append(kernel)
    high, wide = piece["padding"]
    return known[-1].padded((high, wide))


def _scale_and_shift(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch norm in evaluation mode as a factor and a summand, in float64."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _named(step: Step) -> list[dict[str, Any]]:
    """The pieces of a step, with names as the whole model has them."""
    if not step["at"]:
        return step["plan"]["pieces"]

    def whole(name: str | None) -> str | None:
        return name and f"{step['at']}.{name}"

    return [
        {
            **piece,
            "convs": [whole(name) for name in piece["convs"]],
            "norms": [whole(name) for name in piece["norms"]],
            "adds": [
                {
                    **added,
                    "call": {**added["call"], "owner": whole(added["call"]["owner"]) or step["at"]},
                }
                for added in piece["adds"]
            ],
        }
        for piece in step["plan"]["pieces"]
    ]


def _demand_as_prepared(model: nn.Module, name: str, padding: list[int]) -> None:
    layer: Any = model.get_submodule(name)
    if not is_plain_layer(layer) or list(layer.padding) != padding:
        raise FoveateError(
            f"MergeRuns cannot merge {name}, which is not as Deactivate left it "
            f"({type(layer).__name__}): merge before edits that exchange layers"
        )
