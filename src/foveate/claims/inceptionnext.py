"""InceptionNeXt trains faster than ConvNeXt of the same shape."""

from foveate.backbones import create_model
from foveate.claims import Finding, Lab, claim


@claim(
    "inceptionnext",
    says="A training step of InceptionNeXt-T takes less time than one of ConvNeXt-T.",
    paper="1.6x the training throughput (A100, full precision)",
    minutes=2.0,
)
def trains_faster(lab: Lab) -> Finding:
    images = lab.noise(2, 3, 160, 160)
    convnext = lab.make(lambda: create_model("convnext_tiny"))
    inception = lab.make(lambda: create_model("inception_next_tiny"))
    training = lab.training_speed(convnext, inception, images, share=0.6)
    forward = lab.speed(convnext, inception, images, share=0.2)
    return Finding.speedup(
        1.0,
        training,
        details={
            "forward_ratio": [forward.median, forward.low, forward.high],
            "macs": {
                "convnext_tiny": lab.count(convnext, images[:1]).macs,
                "inception_next_tiny": lab.count(inception, images[:1]).macs,
            },
        },
        note="Two images of 160 pixels a step, float32, channels_last, on this processor.",
    )
