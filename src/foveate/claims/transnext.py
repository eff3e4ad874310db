"""Looking sharply near and coarsely far costs less than looking at everything sharply."""

from foveate.claims import Finding, Lab, claim
from foveate.ops.transnext import AggregatedAttention, CosineAttention

WIDTH, HEADS, SIDE = 48, 2, 56


@claim(
    "transnext",
    says="Aggregated attention takes less time than attention between all pixels of the map.",
    paper="attention to a window and a pooled map, at a cost that its linear mode keeps linear",
    minutes=1.0,
)
def foveal_attention_is_faster(lab: Lab) -> Finding:
    x = lab.noise(1, WIDTH, SIDE, SIDE)
    size = (SIDE, SIDE)
    foveal = lab.make(lambda: AggregatedAttention(WIDTH, HEADS, pretrain=size))
    everywhere = lab.make(lambda: CosineAttention(WIDTH, HEADS, pretrain=size))
    found = {"aggregated": lab.count(foveal, x), "all pixels": lab.count(everywhere, x)}
    return Finding.speedup(
        1.0,
        lab.speed(everywhere, foveal, x, share=0.8),
        details={
            "mmacs": {name: counted.macs / 1e6 for name, counted in found.items()},
            "peak_megabytes": {name: c.peak_bytes / 1e6 for name, c in found.items()},
        },
        note="48 channels, 2 heads, 56 pixels, one image. Accuracy is not compared.",
    )
