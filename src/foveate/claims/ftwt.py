"""Filters chosen image by image lose less than as many filters chosen once and for all."""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from foveate.adaptive.ftwt import FireTogether, expected_macs, masked_convs
from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.ops.conv_norm import ConvNorm
from foveate.train.ftwt import LearnMasks
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS, RATIO, WIDTHS = 8, 5, 0.7, (3, 32, 64, 64)


@claim(
    "ftwt",
    says="At as many filters a layer, filters chosen for each image are more accurate than those "
    "of the largest L1 norm, trained on equally.",
    paper="the accuracy of earlier dynamic pruning at 15% and 24% more FLOPs saved on CIFAR",
    minutes=2.0,
)
def choosing_for_each_image_is_better(lab: Lab) -> Finding:
    images, recipe = _images(lab), lab.recipe(epochs=8.0, weight_decay=0.0)
    figures: dict[str, list[float]] = {}
    for seed in range(lab.seed, lab.seed + SEEDS):
        net = lab.make(lambda: plain(len(lab.data.labels)), seed)
        model = VisionModel(net, Preprocess(size=SIZE), lab.data.labels)
        found = {"dense": lab.train_on(model, recipe, seed)}
        ours, theirs = (FireTogether(ratio=RATIO, seed=seed).apply(model, images)[0] for _ in "ab")
        expected, dense = expected_macs(ours, images)
        found["macs_expected_share"] = (expected.sum() / dense.sum()).item()
        found["dynamic"] = lab.train_on(ours, recipe, seed, (LearnMasks(),))
        found["macs_share"] = _macs(ours.eval(), images) / dense.sum().item()
        found["speedup_at_batch_1"] = lab.speed(model, ours, images[:1], share=0.03).median
        _macs(ours, images)
        _choose_for_all(theirs, [layer.mask.sum(1).float().mean() for layer in masked_convs(ours)])
        found["static"] = lab.train_on(theirs, recipe, seed, (LearnMasks(cooldown=0.0),))
        found["static_macs_share"] = _macs(theirs.eval(), images) / dense.sum().item()
        for name, value in found.items():
            figures.setdefault(name, []).append(value)
    gained = 100 * (np.array(figures["dynamic"]) - np.array(figures["static"]))
    return Finding.above(
        0.0,
        mean_interval(gained),
        unit=" points",
        details={name: float(np.mean(values)) for name, values in figures.items()},
        note=f"Three 3x3 convolutions, {lab.source} at {SIZE} pixels, r = {RATIO}, {SEEDS} seeds; "
        "with r = 0.6 both lose half of their accuracy, with 0.8 a quarter is saved; "
        "multiply-adds are those of the filters that are computed, with the heads'.",
    )


def plain(classes: int) -> nn.Module:
    """Three convolutions with batch norm and ReLU, and a linear layer."""
    parts: list[nn.Module] = []
    for dim, out in pairwise(WIDTHS):
        parts += [ConvNorm(dim, out, 3), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, classes))


@torch.no_grad()
def _choose_for_all(model: nn.Module, kept: list[Tensor]) -> None:
    """Set the heads to say what does not depend on the image: the filters of the largest norm."""
    for layer, number in zip(masked_convs(model), kept, strict=True):
        norms = layer.conv.weight.abs().sum((1, 2, 3))
        chosen = norms.argsort(descending=True)[: max(1, round(number.item()))]
        layer.head.fc.weight.zero_()
        layer.head.fc.bias.fill_(-1.0)
        layer.head.fc.bias[chosen] = 1.0


@torch.no_grad()
def _macs(model: nn.Module, images: Tensor) -> float:
    model(images)
    return sum(layer.macs().sum().item() for layer in masked_convs(model))


def _images(lab: Lab) -> Tensor:
    batches = Batches(split=lab.data.splits["val"], batch_size=128, size=SIZE)
    return next(iter(batches.epoch(0))).images
