"""Fewer operations do not give less time: a depthwise convolution achieves few of them a second."""

from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.ops.fasternet import PartialConv

WIDTH, SIDE = 96, 56


@claim(
    "fasternet",
    says="A partial convolution achieves more operations a second than a depthwise one.",
    paper="PConv has higher FLOPS than depthwise convolution on GPU, CPU and ARM (table 1)",
    minutes=1.0,
)
def partial_beats_depthwise(lab: Lab) -> Finding:
    x = lab.noise(4, WIDTH, SIDE, SIDE).contiguous(memory_format=lab.channels_last)
    modules = {
        "partial 3x3": lab.make(lambda: PartialConv(WIDTH)),
        "depthwise 3x3": lab.make(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)),
        "full 3x3": lab.make(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1)),
    }
    macs = {name: lab.count(module, x).macs for name, module in modules.items()}
    times = lab.times(modules, x, share=0.4)
    ratio = lab.speed(modules["depthwise 3x3"], modules["partial 3x3"], x, share=0.5)
    gain = macs["partial 3x3"] / macs["depthwise 3x3"]
    return Finding.above(
        1.0,
        (ratio.median * gain, ratio.low * gain, ratio.high * gain),
        unit="x",
        details={
            "gflops": {name: 2 * macs[name] / times[name].median / 1e9 for name in modules},
            "milliseconds": {name: times[name].median * 1e3 for name in modules},
            "mmacs": {name: macs[name] / 1e6 for name in modules},
        },
        note="Operations a second of the partial over those of the depthwise 3x3, 96 channels, "
        "56 pixels, batch 4, channels_last.",
    )
