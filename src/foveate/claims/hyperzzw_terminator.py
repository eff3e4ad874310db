"""Blocks of drawn kernels learn faster than residual ones of as many parameters."""

from functools import partial

from torch import nn

from foveate.backbones.hyperzzw_terminator import Terminator
from foveate.backbones.resnet import ResNet
from foveate.claims import Finding, Lab, claim
from foveate.train.hyperzzw_terminator import SlowNeuralLoss

SIDE = 12


@claim(
    "hyperzzw_terminator",
    says="After 2 epochs, a Terminator without residual connections is more accurate than a ResNet "
    "of at least as many parameters.",
    paper="better accuracy than ResNets and others on pixel-level tasks with fewer parameters and "
    "fewer epochs (no number in the abstract)",
    minutes=3.0,
)
def drawn_kernels_learn_faster(lab: Lab) -> Finding:
    recipe = lab.recipe(epochs=2.0, weight_decay=0.0)
    run = partial(lab.accuracy, recipe=recipe, size=SIDE)
    return Finding.above(
        0.0,
        lab.paired_gain(
            lambda seed: run(terminator, seed=seed, ingredients=(SlowNeuralLoss(),)),
            lambda seed: run(resnet, seed=seed),
        ),
        unit=" points",
        details={
            "parameters": {
                name: sum(p.numel() for p in build(10).parameters())
                for name, build in (("terminator", terminator), ("resnet", resnet))
            }
        },
        note=f"Three blocks each, {lab.source} at {SIDE} pixels, AdamW; the same seeds for both.",
    )


def terminator(classes: int) -> nn.Module:
    return Terminator(
        classes, factors=(4, 2, 2), earlier=((), (), (0,)), layers=(2, 2, 2), size=SIDE
    )


def resnet(classes: int) -> nn.Module:
    return ResNet(classes, depths=(1, 1, 1), dims=(26, 52, 104), block="basic", stem="small")
