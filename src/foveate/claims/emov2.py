"""Attention near and far at once beats attention near alone."""

from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.ops.emov2 import SpannedAttention
from foveate.ops.l2vit import WindowAttention

WINDOW, HEAD = 4, 4


def spanned(dim: int) -> nn.Module:
    """Windows of neighbours and of places a stride apart."""
    return SpannedAttention(dim, dim, HEAD, WINDOW)


def near(dim: int) -> nn.Module:
    """Windows of neighbours."""
    return WindowAttention(dim, dim // HEAD, WINDOW)


@claim(
    "emov2",
    says="At equal parameters, attention in near and spanned windows is more accurate than in near "
    "ones.",
    paper="EMOv2-5M 79.4% in ImageNet top-1 against EMO-5M 78.4%, whose windows are of one kind",
    minutes=3.0,
)
def spanning_helps(lab: Lab) -> Finding:
    return Finding.above(
        0.0,
        lab.gain(lab.in_skeleton(spanned), lab.in_skeleton(near), lab.recipe(epochs=5.0), 8),
        unit=" points",
        note=f"60 k parameters, {lab.source} at 8 pixels, 5 epochs; windows of 4, heads of 4 "
        "channels.",
    )
