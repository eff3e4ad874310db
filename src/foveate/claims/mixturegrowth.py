"""Two half-width nets, grown into one by mixing their templates, beat one grown at random."""

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.ops.conv_norm import ConvNorm
from foveate.surgery.mixturegrowth import Grow, MixedLayer, Templates
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS, WIDTHS = 8, 12, (3, 8, 16, 16)
BEFORE, AFTER = 8.0, 3.0


@claim(
    "mixturegrowth",
    says="Two half-width nets, joined by new mixtures of their templates, end more accurate than "
    "one that was trained as long as both and grown with random weights.",
    paper="top-1 2% to 2.5% above other ways of growing, on CIFAR-100 and ImageNet",
    minutes=2.0,
)
def mixtures_grow_better(lab: Lab) -> Finding:
    batches = Batches(split=lab.data.splits["val"], batch_size=32, size=SIZE)
    images = next(iter(batches.epoch(0))).images
    found: dict[str, list[float]] = {}
    for seed in range(lab.seed, lab.seed + SEEDS):
        first, second, longer = (_small(lab, seed + other) for other in (0, 1000, 0))
        for model, epochs in ((first, BEFORE), (second, BEFORE), (longer, 2 * BEFORE)):
            found.setdefault("small", []).append(
                lab.train_on(model, lab.recipe(epochs=epochs), seed)
            )
        models = {
            "mixtures": Grow(second=second).apply(first, images)[0],
            "mixtures_of_one": Grow().apply(longer, images)[0],
            "random": _at_random(Grow().apply(longer, images)[0], longer),
        }
        for name, model in models.items():
            found.setdefault(name, []).append(lab.train_on(model, lab.recipe(epochs=AFTER), seed))
    gained = 100 * (np.array(found["mixtures"]) - np.array(found["random"]))
    return Finding.above(
        0.0,
        mean_interval(gained),
        unit=" points",
        details={name: float(np.mean(values)) for name, values in found.items()},
        note=f"Three convolutions, {lab.source} at {SIZE} pixels, {BEFORE:g} epochs a small net "
        f"before and {AFTER:g} after, {SEEDS} seeds.",
    )


def _small(lab: Lab, seed: int) -> nn.Module:
    parts: list[nn.Module] = []
    for dim, out in pairwise(WIDTHS):
        parts += [ConvNorm(dim, out, 3), nn.ReLU()]
    classes = len(lab.data.labels)
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], classes)]
    net = lab.make(lambda: nn.Sequential(*parts), seed)
    return Templates(seed=seed).apply(VisionModel(net, Preprocess(size=SIZE), lab.data.labels))[0]


@torch.no_grad()
def _at_random(grown: nn.Module, small: nn.Module) -> nn.Module:
    """A grown plain model with random weights, of the learnt ones' size, where it is new."""
    learnt = {name: m.weight for name, m in small.named_modules() if isinstance(m, MixedLayer)}
    for name, weight in learnt.items():
        layer: Any = grown.get_submodule(name)
        layer.merge_branches()
        layer.weight.copy_(torch.randn_like(layer.weight) * weight.std())
        layer.weight[: weight.shape[0], : weight.shape[1]] = weight
    return grown
