"""Layers that begin as the identity keep the signal alive in the Poincaré ball."""

from functools import partial

import torch
from torch import Tensor, nn

from foveate.backbones.poincare_resnet import PoincareResNet
from foveate.claims import Finding, Lab, claim
from foveate.ops.poincare_resnet import PoincareConv2d

LAYERS = 20


@claim(
    "poincare_resnet",
    says="After as many epochs, a Poincaré ResNet that began with identity weights is more "
    "accurate than one that began with normal ones.",
    paper="with the usual weights norms collapse to the origin over 20 layers; the identity keeps "
    "them, and deep networks train (no number in the abstract)",
    minutes=3.0,
)
def identity_is_more_accurate(lab: Lab) -> Finding:
    ours, theirs = (partial(_net, identity=identity) for identity in (True, False))
    recipe = lab.recipe(epochs=3.0, optimizer="adam", learning_rate=5e-3, weight_decay=1e-4)
    x = lab.noise(8, 16, 8, 8)
    norms = {
        f"{name}, {side}x{side}": _norm_kept(lab, x, identity, side)
        for name, identity in (("identity", True), ("normal", False))
        for side in (1, 3)
    }
    return Finding.above(
        0.0,
        lab.gain(ours, theirs, recipe, 8),
        unit=" points",
        details={f"norm_kept_over_{LAYERS}_layers": norms},
        note=f"8 layers, 20 k parameters, {lab.source} at 8 pixels, 3 epochs; the same seeds. With "
        "3x3 patches the identity reads the first entries of each, which lie at its border: a "
        "stack without norms and shortcuts then loses small maps over their edge.",
    )


@torch.no_grad()
def _norm_kept(lab: Lab, x: Tensor, identity: bool, side: int) -> float:
    """Share of a random input's norm that is left after many layers."""
    make = partial(PoincareConv2d, 16, 16, side, identity=identity)
    stack = nn.Sequential(*(lab.make(make, seed) for seed in range(LAYERS)))
    return float(stack(x).norm() / x.norm())


def _net(classes: int, identity: bool) -> nn.Module:
    return PoincareResNet(classes, depths=(1, 1, 1), identity=identity)
