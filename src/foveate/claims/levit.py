"""LeViT is several times as fast as EfficientNet at the same accuracy."""

import timm
import torch

from foveate.backbones import create_model
from foveate.claims import Finding, Lab, claim
from foveate.ops.merge import merge


@claim(
    "levit",
    says="LeViT-192 in its merged form takes less than a fifth of the time of EfficientNet-B2, "
    "which is published as equally accurate (80.0% and 80.1%).",
    paper="5 times faster than EfficientNet on CPU at 80% top-1",
    minutes=1.0,
)
def levit_is_faster_than_efficientnet(lab: Lab) -> Finding:
    small, large = lab.noise(1, 3, 224, 224), lab.noise(1, 3, 260, 260)
    levit = merge(lab.make(lambda: create_model("levit_192")))
    efficient = lab.make(lambda: timm.create_model("efficientnet_b2")).eval()
    with torch.inference_mode():
        ratio = lab.ratio(lambda: efficient(large), lambda: levit(small), share=0.8)
    return Finding.speedup(
        5.0,
        ratio,
        details={
            "gmacs": {
                "efficientnet_b2": lab.count(efficient, large).macs / 1e9,
                "levit_192": lab.count(levit, small).macs / 1e9,
            }
        },
        note="One image, of 224 pixels for LeViT and 260 for EfficientNet-B2, float32, eager, "
        "channels_last; the norms of EfficientNet are not folded.",
    )
