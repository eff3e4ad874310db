"""Gated linear attention costs time in proportion to pixels, softmax attention to their square."""

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.claims import Finding, Lab, claim
from foveate.measure import exponent
from foveate.ops.vig_gla import BidirectionalGla

WIDTH, HEADS = 192, 3
SIDES = (16, 24, 32, 48, 64)


class SoftmaxAttention(nn.Module):
    """Attention between all pixels, in PyTorch's own kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(x.flatten(2).mT).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*rows.unbind(0))
        return self.proj(mixed.transpose(1, 2).flatten(2)).mT.unflatten(2, x.shape[2:])


@claim(
    "vig_gla",
    says="The time of bidirectional gated linear attention grows with a smaller power of the "
    "number of pixels than that of softmax attention.",
    paper="at 1024x1024, ViG-T uses 5.2x fewer FLOPs than DeiT-T and is 4.8x faster",
    minutes=2.0,
)
def linear_beats_quadratic(lab: Lab) -> Finding:
    ops = {
        "gated linear": lab.make(lambda: BidirectionalGla(WIDTH, HEADS)),
        "softmax": lab.make(SoftmaxAttention),
    }
    pixels = np.array([side * side for side in SIDES], dtype=float)
    share = 0.9 / len(SIDES)
    times: dict[str, list[float]] = {name: [] for name in ops}
    for side in SIDES:
        found = lab.times(ops, lab.noise(1, WIDTH, side, side), share=share)
        for name in ops:
            times[name].append(found[name].median)
    powers = {name: exponent(pixels, np.array(t)) for name, t in times.items()}
    ours, theirs = powers["gated linear"], powers["softmax"]
    spread = float(
        np.hypot(ours.high - ours.power, theirs.high - theirs.power)
    )  # of the difference of two independent fits
    gap = theirs.power - ours.power
    return Finding.above(
        0.0,
        (gap, gap - spread, gap + spread),
        details={
            "exponents": {name: [p.power, p.low, p.high] for name, p in powers.items()},
            "milliseconds": {
                name: {str(s): 1e3 * t for s, t in zip(SIDES, values, strict=True)}
                for name, values in times.items()
            },
        },
        note="Difference of the exponents of time in pixels, 192 channels, 3 heads, maps of 16 to "
        "64 pixels a side, eager. The paper's figures are of whole networks on a GPU.",
    )
