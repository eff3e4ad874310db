"""Residual connections make Inception networks learn faster."""

from functools import partial

from foveate.backbones import create_model
from foveate.claims import Finding, Lab, claim


@claim(
    "inception_v4",
    says="After as many epochs, a small Inception-ResNet is more accurate than the same cells "
    "without the residual connection.",
    paper="residual connections make Inception networks train significantly faster (section 4)",
    minutes=3.0,
)
def residuals_learn_faster(lab: Lab) -> Finding:
    build = partial(create_model, "inception_mini32")
    return Finding.above(
        0.0,
        lab.gain(
            lambda classes: build(num_classes=classes),
            lambda classes: build(num_classes=classes, shortcut=False),
            lab.recipe(epochs=2.0),
            size=8,
        ),
        unit=" points",
        note=f"inception_mini32, {lab.source} at 8 pixels, 2 epochs; batch norm in both.",
    )
