"""A maximum over neighbours takes less time than a learned depthwise kernel."""

from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.ops.pflayer import MaxPoolMixer

WIDTH, SIDE = 96, 56


@claim(
    "pflayer",
    says="A 3x3 max pool is faster than a 3x3 depthwise convolution of the same map.",
    paper="faster networks with fewer parameters and FLOPs (no single number)",
    minutes=1.0,
)
def pooling_is_faster(lab: Lab) -> Finding:
    x = lab.noise(4, WIDTH, SIDE, SIDE).contiguous(memory_format=lab.channels_last)
    depthwise = lab.make(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False))
    pool = lab.make(lambda: MaxPoolMixer(WIDTH))
    forward = lab.speed(depthwise, pool, x, share=0.5)
    training = lab.training_speed(
        nn.Sequential(lab.make(lambda: nn.Conv2d(WIDTH, WIDTH, 1)), depthwise),
        nn.Sequential(lab.make(lambda: nn.Conv2d(WIDTH, WIDTH, 1)), pool),
        x,
        share=0.3,
    )
    return Finding.speedup(
        1.0,
        forward,
        details={"training_behind_a_1x1": [training.median, training.low, training.high]},
        note="96 channels, 56 pixels, batch 4, channels_last, eager.",
    )
