"""Weights that find their places beat as many in a square."""

from functools import partial

from foveate.backbones.convnext import depthwise
from foveate.claims import Finding, Lab, claim
from foveate.ops.dcls import DepthwiseDcls

WIDTH, SIDE = 96, 56


@claim(
    "dcls",
    says="At equal parameters, learnable spacings are more accurate than 7x7 depthwise kernels.",
    paper="ConvNeXt-T 82.1% to 82.5% in ImageNet top-1 at equal parameters",
    minutes=3.0,
)
def spacings_are_more_accurate(lab: Lab) -> Finding:
    spaced = partial(DepthwiseDcls, kernel_count=16, dilated_kernel_size=11)
    x = lab.noise(1, WIDTH, SIDE, SIDE)
    ratio = lab.speed(
        lab.make(lambda: DepthwiseDcls(WIDTH)), lab.make(lambda: depthwise(WIDTH)), x, share=0.1
    )
    return Finding.above(
        0.0,
        lab.gain(lab.in_skeleton(spaced), lab.in_skeleton(depthwise), lab.recipe(epochs=5.0), 8),
        unit=" points",
        details={"time_over_a_7x7": [ratio.median, ratio.low, ratio.high]},
        note=f"60 k parameters, {lab.source} at 8 pixels, 5 epochs; 16 weights in 11x11. The time "
        "is of 34 weights in 17x17 at 96 channels and 56 pixels.",
    )
