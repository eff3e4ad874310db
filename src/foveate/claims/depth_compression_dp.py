"""Where activations matter least, convolutions merge, and the network is faster for it."""

import numpy as np
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual

from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.surgery.depth_compression_dp.deactivate import Deactivate
from foveate.surgery.depth_compression_dp.merge_runs import MergeRuns
from foveate.surgery.lineage import lineage
from foveate.surgery.merging import Merge
from foveate.train import evaluate
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS, BATCH, SHARE, FASTER = 8, 5, 32, 0.7, 1.2
BEFORE, AFTER = 6.0, 6.0


@claim(
    "depth_compression_dp",
    says="A net of inverted residuals whose convolutions are merged to 70% of their time is 1.2 "
    "times as fast, and tuned it loses less than 1 point against one trained as long.",
    paper="MobileNetV2 1.41 times as fast with 0.11 points more, ImageNet, TensorRT",
    minutes=2.0,
)
def shallower_is_faster(lab: Lab) -> Finding:
    batches = Batches(split=lab.data.splits["train"], batch_size=128, size=SIZE)
    images = [batch.images for batch in batches.epoch(0)][:4]
    lost, ratios, merged_layers = [], [], []
    for seed in range(lab.seed, lab.seed + SEEDS):
        whole = VisionModel(
            lab.make(lambda: _net(len(lab.data.labels)), seed),
            Preprocess(size=SIZE),
            lab.data.labels,
        )
        lab.train_on(whole, lab.recipe(epochs=BEFORE), seed)
        shallow, _ = Deactivate(share=SHARE, batch=BATCH).apply(whole, images)
        lab.train_on(shallow, lab.recipe(epochs=AFTER), seed)
        merged, coverage = MergeRuns().apply(shallow)
        top1 = lab.train_on(whole, lab.recipe(epochs=AFTER), seed)
        assert isinstance(merged, VisionModel)
        lost.append(100 * (top1 - evaluate(merged, lab.data.splits["test"]).top1))
        merged_layers.append(len(coverage))
        x = images[0][:BATCH]
        folded = [Merge().apply(model, x)[0] for model in (whole, merged)]
        ratios.append(lab.speed(folded[0], folded[1], x, share=0.05))
    ratio = sorted(ratios, key=lambda found: found.median)[SEEDS // 2]
    details = {
        "speed_up": {"median": ratio.median, "low": ratio.low, "high": ratio.high},
        "speed_up_of_each_seed": [found.median for found in ratios],
        "points_lost_of_each_seed": lost,
        "layers_in_runs_of_each_seed": merged_layers,
        "steps": [step["edit"] for step in lineage(merged)],
    }
    note = (
        f"Eight inverted residuals, {lab.source} at {SIZE} pixels, {BATCH} images, {SEEDS} seeds, "
        f"{BEFORE:g} epochs before and {AFTER:g} after, eager; the norms of both are folded. A "
        "run's importance is taken without training."
    )
    faster = Finding.speedup(FASTER, ratio, details=details, note=note)
    if faster.verdict != "holds":
        return faster
    return Finding.below(
        1.0, mean_interval(np.array(lost)), unit=" points", details=details, note=note
    )


def _net(classes: int) -> nn.Module:
    """MobileNetV2's blocks, for small images."""
    blocks = [InvertedResidual(16, 16, 1, 4) for _ in range(4)]
    blocks += [InvertedResidual(16, 32, 2, 4), *(InvertedResidual(32, 32, 1, 4) for _ in range(3))]
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, classes)]
    return nn.Sequential(*stem, *blocks, *head)
