"""Weights that took sides in training can be pruned at once, with no tuning after it."""

import numpy as np
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.claims.gradual_pruning import SIZE, plain_model
from foveate.measure import mean_interval
from foveate.surgery.edit import Edit
from foveate.surgery.gradual_pruning import MaskSmallest
from foveate.surgery.recoverable_pruning import FillWithMean
from foveate.train import evaluate
from foveate.train.recoverable_pruning import Polarise
from foveate.vision import VisionModel

SEEDS, EPOCHS, WIDTH, SHARES = 6, 12.0, 2.0, (0.5, 0.7)
HEAD = ("backbone.8",)


@claim(
    "recoverable_pruning",
    says="Of a network trained with the polarising loss, half of the weights go at once for less "
    "than a point of accuracy, with no tuning.",
    paper="ResNet-18 with 50% pruned: 0.47% of ImageNet accuracy, with no tuning (abstract)",
    minutes=2.0,
)
def pruned_at_once(lab: Lab) -> Finding:
    found: dict[str, list[float]] = {}
    recipe = lab.recipe(epochs=EPOCHS)
    for seed in range(lab.seed, lab.seed + SEEDS):
        for share in SHARES:
            for name in ("plain", "polarised"):
                parts = [Polarise(share, 0.3, skip=HEAD)] if name == "polarised" else []
                model = plain_model(lab, WIDTH, seed)
                whole = lab.train_on(model, recipe, seed, parts)
                found.setdefault(f"{name}_for_{share:g}", []).append(whole)
                edits: dict[str, Edit] = {
                    "zeros": MaskSmallest(sparsity=share, skip=HEAD),
                    "means": FillWithMean(sparsity=share, skip=HEAD),
                }
                for fill, edit in edits.items():
                    lost = 100 * (whole - _accuracy(lab, edit.apply(model)[0]))
                    found.setdefault(f"{name}_lost_{share:g}_with_{fill}", []).append(lost)
    return Finding.below(
        1.0,
        mean_interval(np.array(found["polarised_lost_0.5_with_zeros"])),
        unit=" points",
        details={name: float(np.mean(values)) for name, values in found.items()},
        note=f"Three 3x3 convolutions, {lab.source} at {SIZE} pixels, {EPOCHS:g} epochs, {SEEDS} "
        "seeds; the last layer stays whole.",
    )


def _accuracy(lab: Lab, model: nn.Module) -> float:
    assert isinstance(model, VisionModel)
    return evaluate(model, lab.data.splits["test"]).top1
