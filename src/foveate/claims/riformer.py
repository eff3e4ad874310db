"""A MetaFormer without token mixers is faster than one that pools."""

import timm

from foveate.backbones import create_model
from foveate.claims import Finding, Lab, claim
from foveate.ops.merge import merge


@claim(
    "riformer",
    says="RIFormer-S12 in its deployed form takes less time than PoolFormer-S12.",
    paper="76.9% at 4,899 images a second against PoolFormer-S12's 77.2% at 4,160 (A100)",
    minutes=1.0,
)
def no_mixer_is_faster(lab: Lab) -> Finding:
    images = lab.noise(2, 3, 160, 160)
    pooled = lab.make(lambda: timm.create_model("poolformer_s12"))
    bare = merge(lab.make(lambda: create_model("riformer_s12")))
    return Finding.speedup(
        1.0,
        lab.speed(pooled, bare, images, share=0.8),
        details={
            "gmacs": {
                "poolformer_s12": lab.count(pooled, images[:1]).macs / 1e9,
                "riformer_s12": lab.count(bare, images[:1]).macs / 1e9,
            }
        },
        note="Two images of 160 pixels, float32, eager. Accuracy is not compared: that needs "
        "ImageNet and a teacher.",
    )
