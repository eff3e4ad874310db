"""A pyramid that scatters where maps are large beats one that attends everywhere."""

from functools import partial

from foveate.backbones.svt import ScatteringTransformer
from foveate.claims import Finding, Lab, claim
from foveate.ops.attention import SelfAttention
from foveate.ops.svt import ScatteringMixer

SMALL = {
    "depths": (1, 1),
    "dims": (24, 48),
    "heads": (2, 4),
    "mlp_ratios": (2, 2),
    "stem_dim": 16,
    "patch": 1,
    "side": 8,
}


@claim(
    "svt",
    says="A transformer is more accurate if its first stage scatters instead of attending.",
    paper="SVT-H-S 84.2% in ImageNet top-1 at 3.9 GFLOPs, against iFormer-S 83.4% at 4.8",
    minutes=3.0,
)
def scattering_is_more_accurate(lab: Lab) -> Finding:
    scattering = lab.make(lambda: ScatteringMixer(64, 56))
    attention = lab.make(lambda: SelfAttention(64, 2))
    x = lab.noise(1, 64, 56, 56)
    ratio = lab.speed(attention, scattering, x, share=0.1)
    return Finding.above(
        0.0,
        lab.gain(
            partial(ScatteringTransformer, **SMALL),
            partial(ScatteringTransformer, **SMALL, scatter=0),
            lab.recipe(epochs=5.0),
            8,
        ),
        unit=" points",
        details={
            "mixer_faster_than_attention_by": [ratio.median, ratio.low, ratio.high],
            "mixer_gmacs": {
                "scattering": lab.count(scattering, x).macs / 1e9,
                "attention": lab.count(attention, x).macs / 1e9,
            },
        },
        note=f"One stage scatters or none, {lab.source} at 8 pixels, 5 epochs; mixers alone on a "
        "map of 56 pixels and 64 channels.",
    )
