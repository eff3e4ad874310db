"""Four bits without data: ranges from images that a network asks for, and norms that adapt."""

from itertools import pairwise
from typing import Any

import numpy as np
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.ops.conv_norm import ConvNorm
from foveate.surgery.aac_abn_dfq import AdaptNorms, SimulateUnseen
from foveate.train import evaluate
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS, WIDTHS = 8, 6, (3, 32, 48, 64)
BITS: dict[str, Any] = {"weight_bits": 4, "activation_bits": 4}


@claim(
    "aac_abn_dfq",
    says="With 4-bit weights and activations and no data, ranges of images with strong logits and "
    "adapted norms leave the network more accurate than ranges of images that match the norms.",
    paper="64.33% ImageNet top-1 of ResNet-18 in 4 bits, 3.7 points above the best before it",
    minutes=3.0,
)
def strong_images_and_adapted_norms(lab: Lab) -> Finding:
    real = next(Batches(split=lab.data.splits["train"], batch_size=64, size=SIZE).epoch(0)).images
    found: dict[str, list[float]] = {}
    for seed in range(lab.seed, lab.seed + SEEDS):
        net = lab.make(lambda: _net(len(lab.data.labels)), seed)
        model = VisionModel(net, Preprocess(size=SIZE), lab.data.labels)
        found.setdefault("before", []).append(lab.train_on(model, lab.recipe(epochs=6.0), seed))
        for kind in ("strong", "matching", "noise", "given"):
            rounded, _ = SimulateUnseen(kind=kind, **BITS).apply(model, real)
            own = kind if kind == "given" else "strong"
            adapted, _ = AdaptNorms(kind=own).apply(rounded, real)
            as_published, _ = AdaptNorms(kind=own, change=False).apply(rounded, real)
            stages = {"": rounded, ", adapted": adapted, ", adapted as published": as_published}
            for stage, edited in stages.items():
                assert isinstance(edited, VisionModel)
                top1 = evaluate(edited, lab.data.splits["test"]).top1
                found.setdefault(kind + stage, []).append(top1)
    gained = 100 * (np.array(found["strong, adapted"]) - np.array(found["matching"]))
    return Finding.above(
        0.0,
        mean_interval(gained),
        unit=" points",
        details={name: float(np.mean(values)) for name, values in found.items()},
        note=f"Three convolutions, {lab.source} at {SIZE} pixels, 6 epochs, {SEEDS} seeds; norms "
        "adapt to what rounding changes only, which is not the paper's way.",
    )


def _net(classes: int) -> nn.Module:
    parts: list[nn.Module] = []
    for dim, out in pairwise(WIDTHS):
        parts += [ConvNorm(dim, out, 3), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, classes))
