"""Kernels longer than the map, in a gate, beat a large local kernel."""

from functools import partial

import torch
from torch import Tensor, nn

from foveate.backbones.convnext import depthwise
from foveate.claims import Finding, Lab, claim
from foveate.ops.parcnetv2 import OversizedConv, SpatialGate

WIDTH, SIDE = 16, 14


def knows_its_place(op: nn.Module) -> float:
    """Share of the variance of places that outputs on a constant map explain, linearly."""
    at = torch.linspace(-1, 1, SIDE)
    places = torch.cartesian_prod(at, at)
    seen: Tensor = op.eval()(torch.ones(1, WIDTH, SIDE, SIDE))[0].flatten(1).T
    seen = torch.cat((seen, torch.ones(len(seen), 1)), dim=1).double()
    left = places - (seen @ torch.linalg.lstsq(seen, places.double()).solution)
    return 1 - (left.square().sum() / places.square().sum()).item()


@claim(
    "parcnetv2",
    says="At equal parameters, gates with oversized kernels are more accurate than 7x7 depthwise "
    "kernels.",
    paper="ParCNetV2-T 83.5% against ConvNeXt-T 82.1% in ImageNet top-1",
    minutes=3.0,
)
def oversized_gates_are_more_accurate(lab: Lab) -> Finding:
    wrapped = partial(nn.Conv2d, padding=3, groups=WIDTH, padding_mode="circular")
    ops = {
        "oversized": lab.make(lambda: OversizedConv(WIDTH, SIDE)),
        "local": lab.make(lambda: depthwise(WIDTH)),
        "circular": lab.make(lambda: wrapped(WIDTH, WIDTH, 7)),
    }
    with torch.inference_mode():
        known = {name: knows_its_place(op) for name, op in ops.items()}
    ours = lab.in_skeleton(partial(SpatialGate, side=8))
    return Finding.above(
        0.0,
        lab.gain(ours, lab.in_skeleton(depthwise), lab.recipe(epochs=5.0), 8),
        unit=" points",
        details={"place_known_from_a_constant_map": known},
        note=f"60 k parameters, {lab.source} at 8 pixels, 5 epochs; kernels of 15 pixels, zoomed "
        "for the smaller maps.",
    )
