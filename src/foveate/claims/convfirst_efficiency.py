"""The convolutions that need the least arithmetic use the machine worst."""

from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.measure import ceilings

WIDTH, SIDE = 96, 56


@claim(
    "convfirst_efficiency",
    says="A depthwise convolution reaches a smaller share of the machine's peak than a full one.",
    paper="degenerate convolutions have low computational efficiency; fusing blocks gave about 4x",
    minutes=1.0,
)
def degenerate_layers_are_inefficient(lab: Lab) -> Finding:
    x = lab.noise(4, WIDTH, SIDE, SIDE).contiguous(memory_format=lab.channels_last)
    layers = {
        "full 3x3": nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False),
        "depthwise 3x3": nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False),
        "depthwise 7x7": nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH, bias=False),
        "pointwise": nn.Conv2d(WIDTH, 4 * WIDTH, 1, bias=False),
    }
    modules = {name: lab.make(lambda layer=layer: layer) for name, layer in layers.items()}
    flops = {name: lab.count(module, x).flops for name, module in modules.items()}
    roof = ceilings()
    times = lab.times(modules, x, share=0.4)
    full, deep = "full 3x3", "depthwise 3x3"
    ratio = lab.speed(modules[deep], modules[full], x, share=0.4)
    gain = flops[full] / flops[deep]
    return Finding.above(
        1.0,
        (ratio.median * gain, ratio.low * gain, ratio.high * gain),
        unit="x",
        details={
            "share_of_peak": {
                name: flops[name] / times[name].median / roof.flops for name in modules
            },
            "peak_gflops": roof.flops / 1e9,
        },
        note="Efficiency of the full 3x3 over that of the depthwise 3x3 at 96 channels, 56 pixels. "
        "Block fusion is not measured here.",
    )
