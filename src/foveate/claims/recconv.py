"""A recursion of small kernels is cheaper than one kernel that sees as far."""

from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.ops.recconv import RecConv

WIDTH, SIDE, LEVEL, KERNEL = 64, 56, 3, 5


@claim(
    "recconv",
    says="A recursive convolution takes less time than one depthwise kernel that sees as far.",
    paper="the view grows as k 2^L for at most 5/3 of the work of a k x k kernel, instead of 4^L",
    minutes=1.0,
)
def recursion_is_faster(lab: Lab) -> Finding:
    x = lab.noise(1, WIDTH, SIDE, SIDE)
    wide = KERNEL * 2**LEVEL + 1
    recursive = lab.make(lambda: RecConv(WIDTH, KERNEL, LEVEL))
    large = lab.make(lambda: nn.Conv2d(WIDTH, WIDTH, wide, padding=wide // 2, groups=WIDTH))
    small = lab.make(lambda: nn.Conv2d(WIDTH, WIDTH, KERNEL, padding=KERNEL // 2, groups=WIDTH))
    ratio = lab.speed(large, recursive, x, share=0.5)
    cost = lab.speed(recursive, small, x, share=0.3)
    macs = {"recursive": recursive, "large": large, "small": small}
    return Finding.speedup(
        1.0,
        ratio,
        details={
            "time_over_one_small_kernel": [cost.median, cost.low, cost.high],
            "mmacs": {name: lab.count(op, x).macs / 1e6 for name, op in macs.items()},
        },
        note=f"{KERNEL}x{KERNEL}, {LEVEL} levels, against {wide}x{wide}; 64 channels, 56 pixels.",
    )
