"""Equalised, rounded for its outputs and corrected, a depthwise net survives one scale a layer."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.claims import Finding, Lab, claim
from foveate.claims.quant_whitepaper import SEEDS, SIZE, separable
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.surgery.edit import Edit
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.equalise import CrossLayerEqualise, scale_between
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.train import evaluate
from foveate.vision import Preprocess, VisionModel

AS_PUBLISHED = CorrectBias(how="empirical", shrink=False)
CALIBRATION = 4
"""Batches of training images that edits look at."""
DECADES = 2.0
"""Over which the scales of a layer's channels are spread, while the net computes the same."""


@claim(
    "quant_whitepaper_qualcomm",
    says="Of a net of depthwise convolutions whose channels differ a hundredfold in scale, 8 bits "
    "with one scale a layer cost less than 1 point once it is equalised and its biases are "
    "corrected.",
    paper="calibration is sufficient for 8 bits with close to float accuracy in most cases; "
    "training enables fewer bits with competitive results (abstract)",
    minutes=2.0,
)
def equalisation_rescues(lab: Lab) -> Finding:
    batches = Batches(split=lab.data.splits["train"], batch_size=128, size=SIZE)
    images = [batches.batch(0, step).images for step in range(CALIBRATION)]
    lost: dict[str, list[float]] = {}
    for seed in range(lab.seed, lab.seed + SEEDS):
        net = lab.make(lambda: separable(len(lab.data.labels)), seed)
        model = VisionModel(net, Preprocess(size=SIZE), lab.data.labels)
        lab.train_on(model, lab.recipe(epochs=6.0), seed)
        skewed = skew(model, images, seed)
        before = evaluate(skewed, lab.data.splits["test"]).top1
        for bits in (8, 4):
            for name, edits in _steps(bits).items():
                edited: Any = skewed
                for edit in edits:
                    edited = edit.apply(edited, images)[0]
                after = evaluate(edited, lab.data.splits["test"]).top1
                lost.setdefault(f"W{bits}A8, {name}", []).append(100 * (before - after))
        tuned = lab.train_on(edited, lab.recipe(epochs=2.0, learning_rate=5e-4), seed)
        lost.setdefault("W4A8, and trained", []).append(100 * (before - tuned))
    return Finding.below(
        1.0,
        mean_interval(np.array(lost["W8A8, biases corrected"])),
        unit=" points",
        details={"points_lost": {name: float(np.mean(values)) for name, values in lost.items()}},
        note=f"Depthwise separable convolutions, {lab.source} at {SIZE} pixels, {SEEDS} seeds; "
        "each step is added to those before it; AdaRound and training at 4 bits alone.",
    )


def _steps(bits: int) -> dict[str, list[Edit]]:
    """The pipeline of the paper, a step more each time."""
    plain = Simulate(weight_bits=bits, per_channel=False, weight_range="minmax")
    simulate = Simulate(weight_bits=bits, per_channel=False)
    equalised = [CrossLayerEqualise(), simulate]
    found: dict[str, list[Edit]] = {
        "extremes": [plain],
        "least squares": [simulate],
        "equalised": equalised,
        "biases corrected": [*equalised, AS_PUBLISHED],
    }
    if bits < 8:  # at 8 there is nothing left to win
        found["AdaRound"] = [*equalised, AdaRound(steps=100), AS_PUBLISHED]
    return found


@torch.no_grad()
def skew(model: VisionModel, images: list[Tensor], seed: int) -> VisionModel:
    """The same function, with channels scaled apart wherever scales may pass."""
    edit = CrossLayerEqualise()
    plan, _ = edit.decide(model, images)
    skewed: nn.Module = edit.rebuild(model, plan)
    generator = torch.Generator().manual_seed(seed)
    for pair in plan["pairs"]:
        first, second = (skewed.get_submodule(pair[end]) for end in ("first", "second"))
        decades = DECADES * (torch.rand(len(first.bias), generator=generator) - 0.5)  # pyright: ignore
        scale_between(first, second, 10**decades)
    assert isinstance(skewed, VisionModel)
    return skewed
