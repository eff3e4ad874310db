"""Kernels made of likeness to every region beat a large static kernel."""

from functools import partial

from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.ops.overlock import ContMix, LargeKernel

WIDTH, SIDE = 64, 14


def dynamic(dim: int) -> nn.Module:
    """Kernels of 3 and 5 pixels, made of likeness to 2 x 2 regions; they fit small maps."""
    return ContMix(dim, kernel_size=5, heads=2, small=3, regions=2)


@claim(
    "overlock",
    says="At equal parameters, context-mixing dynamic kernels are more accurate than a large "
    "static kernel with dilated branches.",
    paper="OverLoCK-T 84.2% in ImageNet top-1 against UniRepLKNet-T 83.2%",
    minutes=3.0,
)
def context_mixing_is_more_accurate(lab: Lab) -> Finding:
    x = lab.noise(1, WIDTH, SIDE, SIDE)
    pair = {"dynamic": ContMix(WIDTH, 7), "static": LargeKernel(WIDTH, 7)}
    return Finding.above(
        0.0,
        lab.gain(
            lab.in_skeleton(dynamic),
            lab.in_skeleton(partial(LargeKernel, kernel_size=5)),
            lab.recipe(epochs=5.0),
            8,
        ),
        unit=" points",
        details={"mmacs": {name: lab.count(op, x).macs / 1e6 for name, op in pair.items()}},
        note=f"60 k parameters, {lab.source} at 8 pixels, 5 epochs; kernels of 5 pixels, 2 heads, "
        "2 x 2 regions; each map is its own context, and maps below 5 pixels are enlarged.",
    )
