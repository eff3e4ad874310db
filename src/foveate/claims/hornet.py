"""Gating again and again beats one wide depthwise kernel."""

from functools import partial

from foveate.backbones.convnext import depthwise
from foveate.claims import Finding, Lab, claim
from foveate.ops.hornet import RecursiveGatedConv

WIDTH, SIDE = 64, 14


@claim(
    "hornet",
    says="At equal parameters, gated convolutions of order 3 are more accurate than 7x7 depthwise "
    "ones.",
    paper="HorNet-T 82.8% and 83.0% against ConvNeXt-T 82.1% in ImageNet top-1 (table 1)",
    minutes=3.0,
)
def gating_is_more_accurate(lab: Lab) -> Finding:
    gated = lab.in_skeleton(partial(RecursiveGatedConv, order=3))
    plain = lab.in_skeleton(depthwise)
    x = lab.noise(1, WIDTH, SIDE, SIDE)
    orders = {str(n): lab.count(RecursiveGatedConv(WIDTH, n), x).macs for n in range(1, 6)}
    return Finding.above(
        0.0,
        lab.gain(gated, plain, lab.recipe(epochs=5.0), 8),
        unit=" points",
        details={"macs_by_order": orders},
        note=f"60 k parameters, {lab.source} at 8 pixels, 5 epochs; the same seeds for both.",
    )
