"""Attention to a reduced map costs a fraction of attention to the whole one."""

from foveate.claims import Finding, Lab, claim
from foveate.ops.attention import SelfAttention
from foveate.ops.pvt import SpatialReductionAttention


@claim(
    "pvt",
    says="On maps of 56 pixels and 64 channels, attention to keys and values that are 8 times "
    "smaller a side takes less than half the time of attention to all.",
    paper="the cost of attention is 64 times lower with a ratio of 8 (section 3.3)",
    minutes=1.0,
)
def reduction_is_cheaper(lab: Lab) -> Finding:
    maps = lab.noise(2, 64, 56, 56)
    whole = lab.make(lambda: SelfAttention(64, heads=1))
    reduced = lab.make(lambda: SpatialReductionAttention(64, heads=1, ratio=8))
    return Finding.speedup(
        2.0,
        lab.speed(whole, reduced, maps, share=0.8),
        details={
            "mmacs": {
                "whole": lab.count(whole, maps[:1]).macs / 1e6,
                "reduced": lab.count(reduced, maps[:1]).macs / 1e6,
            }
        },
        note="Forward, float32, fused attention for both. The layers around attention cost the "
        "same in both, so the ratio of times is lower than 64.",
    )
