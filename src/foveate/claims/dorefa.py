"""Weights of 1 bit, activations of 2 and gradients of 6 train to nearly the accuracy of float."""

from itertools import pairwise

import numpy as np
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.ops.conv_norm import ConvNorm
from foveate.surgery.dorefa import DoReFa
from foveate.surgery.low_bits import Pack
from foveate.train import evaluate
from foveate.train.dorefa import LowBitGradients
from foveate.vision import Preprocess, VisionModel

SEEDS, WIDTHS = 6, (32, 64, 64, 96, 96)
GRADIENTS = {"1/2/32": None, "1/2/6": 6, "1/2/4": 4, "1/2/2": 2}


@claim(
    "dorefa",
    says="Weights of 1 bit, activations of 2 and gradients of 6, from scratch, cost less than 3 "
    "points of accuracy.",
    paper="SVHN within half a point of float; AlexNet 46.1% on ImageNet with 1, 2 and 6 bits",
    minutes=3.0,
)
def few_bits_train_from_scratch(lab: Lab) -> Finding:
    size = 8 if lab.source == "digits" else 16
    recipe = lab.recipe(epochs=10.0, weight_decay=0.0)
    batches = Batches(split=lab.data.splits["val"], batch_size=32, size=size)
    images = next(iter(batches.epoch(0))).images
    lost: dict[str, list[float]] = {}
    smaller, agreeing = 0.0, True
    for seed in range(lab.seed, lab.seed + SEEDS):

        def build() -> VisionModel:
            net = lab.make(lambda: plain(len(lab.data.labels)), seed)  # noqa: B023
            return VisionModel(net, Preprocess(size=size), lab.data.labels)

        before = lab.train_on(build(), recipe, seed)
        for name, bits in GRADIENTS.items():
            model, _ = DoReFa(weight_bits=1, activation_bits=2).apply(build(), images)
            parts = () if bits is None else (LowBitGradients(bits),)
            after = lab.train_on(model, recipe, seed, parts)
            lost.setdefault(name, []).append(100 * (before - after))
            packed, _ = Pack().apply(model)
            judged = evaluate(packed, lab.data.splits["test"])  # pyright: ignore[reportArgumentType]
            agreeing &= judged.top1 == after
            smaller = _bytes(build()) / _bytes(packed)
    return Finding.below(
        3.0,
        mean_interval(np.array(lost["1/2/6"])),
        unit=" points",
        details={
            "points_lost": {name: mean_interval(np.array(v)) for name, v in lost.items()},
            "bytes_before_over_after": smaller,
            "packed_as_accurate": agreeing,
        },
        note=f"Five convolutions, {lab.source} at {size} pixels, {SEEDS} seeds; bits of weights, "
        "activations and gradients; first and last layer in float.",
    )


def plain(classes: int) -> nn.Module:
    """Five 3x3 convolutions with batch norm and ReLU, two of them strided, and a linear layer."""
    parts: list[nn.Module] = [ConvNorm(3, WIDTHS[0], 3), nn.ReLU()]
    for i, (dim, out) in enumerate(pairwise(WIDTHS)):
        parts += [ConvNorm(dim, out, 3, stride=1 + i % 2), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, classes))


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())
