"""A fixed density over the taps makes a convolution learn better."""

from functools import partial

from torch import nn

from foveate.backbones.stm_evaluation import Skeleton
from foveate.claims import Finding, Lab, claim
from foveate.ops.weighted_conv import WeightedConv2d

DEPTHS, DIMS = (1, 1, 1), (16, 32, 64)


def weighted(dim: int) -> nn.Module:
    """A 3x3 convolution with the authors' density."""
    return WeightedConv2d(dim, dim, 3, padding=1)


def plain(dim: int) -> nn.Module:
    """A 3x3 convolution."""
    return nn.Conv2d(dim, dim, 3, padding=1)


@claim(
    "weighted_conv",
    says="A net of weighted 3x3 convolutions is more accurate than one of plain ones.",
    paper="VGG on CIFAR-100: 56.89% to 66.94%",
    minutes=3.0,
)
def density_helps(lab: Lab) -> Finding:
    ours, theirs = (partial(Skeleton, op, depths=DEPTHS, dims=DIMS) for op in (weighted, plain))
    return Finding.above(
        0.0,
        lab.gain(ours, theirs, lab.recipe(epochs=5.0), 8),
        unit=" points",
        note=f"The same width and the same seeds for both, {lab.source} at 8 pixels, 5 epochs.",
    )
