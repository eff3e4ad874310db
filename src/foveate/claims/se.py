"""Squeeze and excitation makes a residual net more accurate for little more work."""

from foveate.claims import Finding, Lab, claim


@claim(
    "se",
    says="A small ResNet with squeeze and excitation is more accurate than without.",
    paper="-1.51 points of ImageNet top-1 error on ResNet-50 for 10% more parameters",
    minutes=3.0,
)
def attention_is_more_accurate(lab: Lab) -> Finding:
    ours, plain = map(lab.named, ("seresnet_mini32", "resnet_mini32"))
    added = sum(p.numel() for p in ours(10).parameters()) - sum(
        p.numel() for p in plain(10).parameters()
    )
    return Finding.above(
        0.0,
        lab.gain(ours, plain, lab.recipe(epochs=4.0), 8),
        unit=" points",
        details={"parameters_added": added},
        note=f"{lab.source} at 8 pixels, 4 epochs; the same seeds for both.",
    )
