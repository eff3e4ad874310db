"""The relative error of greedily rounded layers falls as their width grows."""

from typing import Any

import numpy as np
import torch

from foveate.claims import Finding, Lab, claim
from foveate.claims.quant_whitepaper import SEEDS, SIZE, separable
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.surgery.gpfq import Alphabet, FollowPath, follow
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.train import evaluate
from foveate.vision import Preprocess, VisionModel

WIDTHS, PLACES, OUTPUTS, DRAWS = (64, 128, 256, 512, 1024), 16, 8, 8
LETTERS = {"ternary": (1.0, 1), "3 bits": (1 / 3, 3), "4 bits": (1 / 7, 7)}


@claim(
    "gpfq",
    says="The relative squared error of a ternary layer falls faster than as N^-0.8 with its "
    "number of weights N, for Gaussian inputs.",
    paper="it decays essentially linearly in the number of weights; networks of few bits lose "
    "little accuracy on ImageNet (abstract)",
    minutes=1.0,
)
def errors_fall(lab: Lab) -> Finding:
    exponents: dict[str, list[float]] = {}
    for draw in range(lab.seed, lab.seed + DRAWS):
        for name, (step, most) in LETTERS.items():
            errors = np.array([_errors(width, draw, step, most) for width in WIDTHS])
            slopes = np.polyfit(np.log(WIDTHS), np.log(errors), 1)[0]
            for way, slope in zip(("followed", "nearest"), slopes, strict=True):
                exponents.setdefault(f"{name}, {way}", []).append(float(slope))
    return Finding.below(
        -0.8,
        mean_interval(np.array(exponents["ternary, followed"])),
        details={
            "exponents": {name: float(np.mean(values)) for name, values in exponents.items()},
            "points_lost": _points_lost(lab),
        },
        note=f"The exponent of N, {DRAWS} draws; and points that 3-bit weights cost a net of "
        f"depthwise separable convolutions on {lab.source} at {SIZE} pixels, {SEEDS} seeds.",
    )


def _errors(width: int, seed: int, step: float, most: int) -> tuple[float, float]:
    """Relative squared errors of following the path, and of nearest rounding."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, PLACES, width, generator=generator)
    w = 2 * torch.rand(1, OUTPUTS, width, generator=generator) - 1
    alphabet = Alphabet(torch.tensor(step), torch.tensor(-most), torch.tensor(most))
    signal = (x @ w.mT).square().sum()
    ways = follow(w, x, x, alphabet), alphabet.nearest(w)
    first, second = (((x @ (w - q).mT).square().sum() / signal).item() for q in ways)
    return first, second


def _points_lost(lab: Lab) -> dict[str, float]:
    """What 3-bit weights cost a trained net, in points of top-1."""
    batches = Batches(split=lab.data.splits["train"], batch_size=128, size=SIZE)
    images = [batch.images for batch in batches.epoch(0)]
    lost: dict[str, list[float]] = {}
    for seed in range(lab.seed, lab.seed + SEEDS):
        net = lab.make(lambda: separable(len(lab.data.labels)), seed)
        model = VisionModel(net, Preprocess(size=SIZE), lab.data.labels)
        before = lab.train_on(model, lab.recipe(epochs=6.0), seed)
        nearest, _ = Simulate(weight_bits=3, activation_bits=None).apply(model, images)
        followed, _ = FollowPath().apply(nearest, images)
        edited: Any
        for name, edited in (("nearest", nearest), ("followed", followed)):
            after = evaluate(edited, lab.data.splits["test"]).top1
            lost.setdefault(name, []).append(100 * (before - after))
    return {name: float(np.mean(values)) for name, values in lost.items()}
