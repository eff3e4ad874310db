"""Eight bits, with a scale for every channel's weights, cost next to no accuracy."""

from itertools import pairwise

import numpy as np
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.merge import merge
from foveate.surgery.quant_whitepaper import Quantise
from foveate.train import evaluate
from foveate.train.quant_whitepaper import QuantisationAware
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS, WIDTHS = 8, 5, (32, 64, 64, 128)
EDITS = {
    "W8A8": Quantise(),
    "W8A8, a scale a layer": Quantise(per_channel=False),
    "W4A8": Quantise(weight_bits=4),
    "W4A8, a scale a layer": Quantise(weight_bits=4, per_channel=False),
}


@claim(
    "quant_whitepaper",
    says="8-bit weights with a scale each channel and 8-bit activations, calibrated after "
    "training, cost less than 2 points of accuracy.",
    paper="within 2% of float by calibration alone; by training too, within 1% at 8 bits and 2% to "
    "10% at 4; files of a quarter",
    minutes=2.0,
)
def eight_bits_are_enough(lab: Lab) -> Finding:
    batches = Batches(split=lab.data.splits["train"], batch_size=128, size=SIZE)
    images = [batch.images for batch in batches.epoch(0)]
    lost: dict[str, list[float]] = {}
    tuning, ratio = lab.recipe(epochs=2.0, learning_rate=5e-4), 0.0
    for seed in range(lab.seed, lab.seed + SEEDS):
        net = lab.make(lambda: separable(len(lab.data.labels)), seed)
        model = VisionModel(net, Preprocess(size=SIZE), lab.data.labels)
        before = lab.train_on(model, lab.recipe(epochs=6.0), seed)
        for name, edit in EDITS.items():
            edited: VisionModel = edit.apply(model, images)[0]  # pyright: ignore[reportAssignmentType]
            after = evaluate(edited, lab.data.splits["test"]).top1
            lost.setdefault(name, []).append(round(100 * (before - after), 9))
            tuned = lab.train_on(edited, tuning, seed, (QuantisationAware(),))
            lost.setdefault(f"{name}, trained", []).append(round(100 * (before - tuned), 9))
            ratio = _bytes(model) / _bytes(merge(edited))
    return Finding.below(
        2.0,
        mean_interval(np.array(lost["W8A8"])),
        unit=" points",
        details={
            "points_lost": {name: float(np.mean(values)) for name, values in lost.items()},
            "bytes_before_over_after": ratio,
        },
        note=f"A net of depthwise separable convolutions, {lab.source} at {SIZE} pixels, {SEEDS} "
        "seeds; its layers run in integers.",
    )


def separable(classes: int) -> nn.Module:
    """A stem and depthwise separable convolutions, each with batch norm and ReLU."""
    parts: list[nn.Module] = [ConvNorm(3, WIDTHS[0], 3), nn.ReLU()]
    for dim, out in pairwise(WIDTHS):
        parts += [ConvNorm(dim, dim, 3, groups=dim), nn.ReLU(), ConvNorm(dim, out), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, classes))


def _bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())
