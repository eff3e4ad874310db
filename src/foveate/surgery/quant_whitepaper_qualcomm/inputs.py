"""What comes into a layer of a simulated model, before anything was rounded and now."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.surgery.columns import by_group, columns
from foveate.surgery.layers import cut_off
from foveate.surgery.quant_whitepaper_qualcomm.simulate import (
    SimulatedLayer,
    all_of_them,
    none,
    switched,
)


@dataclass(frozen=True)
class Inputs:
    """Inputs of single outputs of a layer, (groups, places, weights of an output).

    Attributes:
        plain: while nothing was rounded.
        rounded: of the same places, as all that comes before makes them now.
    """

    plain: Tensor
    rounded: Tensor


@torch.no_grad()
def inputs_of(
    model: nn.Module, layer: SimulatedLayer, batches: Iterable[Tensor], places: int, seed: int
) -> Inputs:
    """Look at a layer while batches pass through the model, in evaluation mode.

    Args:
        batches: of the model's inputs.
        places: of an image, at most; the seed chooses them.
    """
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    generators = [torch.Generator().manual_seed(seed) for _ in found]
    for batch in batches:
        for part, generator, on in zip(found, generators, (none, all_of_them), strict=True):
            with switched(model, on):
                x = reaching(model, layer, batch)
                if layer.input_grid is not None:
                    x = layer.input_grid(x)
            part.append(columns(x, layer.weight, layer.geometry, places, generator))
    return Inputs(*(torch.cat(part, 1) for part in found))


def outputs_at(layer: SimulatedLayer, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What a layer would make of inputs (groups, places, weights of an output) with another
    weight and bias: (groups, places, outputs of a group), before the outputs are rounded."""
    rows = by_group(weight, layer.geometry).transpose(1, 2)
    return cut_off(torch.baddbmm(bias.view(len(rows), 1, -1), inputs, rows), layer.top)


class _ReachedError(Exception):
    """Ends a pass that has shown what was asked for."""


def reaching(model: nn.Module, layer: nn.Module, batch: Tensor) -> Tensor:
    """What a layer takes when a batch passes through its model."""
    seen: list[Tensor] = []

    def stop(layer: nn.Module, args: Any) -> None:
        seen.append(args[0])
        raise _ReachedError

    handle = layer.register_forward_pre_hook(stop)
    try:
        model(batch)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return seen[0]
