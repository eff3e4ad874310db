"""Seeing large and focusing small beats a large static kernel."""

from functools import partial

from foveate.backbones.convnext import depthwise
from foveate.claims import Finding, Lab, claim
from foveate.ops.lsnet import LsConv


@claim(
    "lsnet",
    says="At equal parameters, LS convolutions are more accurate than 7x7 depthwise ones.",
    paper="LSNet-T 74.9% in ImageNet top-1 at 0.3 G multiply-adds, above networks of its cost",
    minutes=3.0,
)
def focusing_is_more_accurate(lab: Lab) -> Finding:
    ours = lab.in_skeleton(partial(LsConv, group_dim=4))
    return Finding.above(
        0.0,
        lab.gain(ours, lab.in_skeleton(depthwise), lab.recipe(epochs=5.0), 8),
        unit=" points",
        note=f"60 k parameters, {lab.source} at 8 pixels, 5 epochs; groups of 4 channels.",
    )
