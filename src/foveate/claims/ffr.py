"""A network whose features were made to flow evenly minds less that half of its filters go."""

from functools import partial

import numpy as np
from torch import Tensor, nn

from foveate.backbones.resnet import ResNet
from foveate.claims import Finding, Lab, claim
from foveate.data import Batches
from foveate.measure import mean_interval
from foveate.surgery.channels.remove import groups
from foveate.surgery.ffr import RemoveFaint, filter_norms
from foveate.train import Ingredient, Training, evaluate
from foveate.train.ffr import FeatureFlow
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS, EPOCHS, FAINT = 8, 5, 6.0, 0.01
POINTS = ("backbone.stages.?.blocks.?",)


class Lasso(Ingredient):
    """L1 regularisation of all kernels."""

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        kernels = [p for p in training.model.parameters() if p.ndim > 1]
        return loss + 1e-4 * sum((p.abs().sum() for p in kernels), loss.new_zeros(()))


@claim(
    "ffr",
    says="With half of the channels removed by norm and two epochs of tuning, a residual network "
    "that was trained with feature flow regularisation is more accurate than one with L1.",
    paper="more zeros and more filters that can go; fewer parameters and FLOPs than, or as many "
    "as, the best pruning of VGG and ResNet (abstract)",
    minutes=3.0,
)
def even_flow_spares_filters(lab: Lab) -> Finding:
    found: dict[str, list[float]] = {}
    recipe, tuning = lab.recipe(epochs=EPOCHS), lab.recipe(epochs=2.0, learning_rate=5e-4)
    images = next(iter(Batches(split=lab.data.splits["val"], batch_size=2, size=SIZE).epoch(0)))
    ways = {"plain": [], "l1": [Lasso()], "ffr": [FeatureFlow(POINTS, 0.1, 0.1)]}
    for seed in range(lab.seed, lab.seed + SEEDS):
        for name, ingredients in ways.items():
            net = lab.make(partial(residual, len(lab.data.labels)), seed)
            model = VisionModel(net, Preprocess(size=SIZE), lab.data.labels)
            whole = lab.train_on(model, recipe, seed, ingredients)
            half, _ = RemoveFaint(share=0.5).apply(model, images.images)
            assert isinstance(half, VisionModel)
            cut = evaluate(half, lab.data.splits["test"]).top1
            tuned = lab.train_on(half, tuning, seed)
            figures = {"whole": whole, "cut": cut, "tuned": tuned}
            figures["faint_share"] = _faint(model, images.images)
            for key, value in figures.items():
                found.setdefault(f"{name}_{key}", []).append(value)
    gained = 100 * (np.array(found["ffr_tuned"]) - np.array(found["l1_tuned"]))
    return Finding.above(
        0.0,
        mean_interval(gained),
        unit=" points",
        details={name: float(np.mean(values)) for name, values in found.items()},
        note=f"ResNet-14 of 16, 32 and 64 channels, {lab.source} at {SIZE} pixels, {EPOCHS:g} "
        f"epochs, {SEEDS} seeds; faint are channels below {FAINT:g} of their group's largest norm.",
    )


def residual(classes: int) -> nn.Module:
    """ResNet-14 for small images."""
    dims, depths = (16, 32, 64), (2, 2, 2)
    return ResNet(classes, depths=depths, dims=dims, block="basic", stem="small")


def _faint(model: nn.Module, images: Tensor) -> float:
    norms = [filter_norms(model, group) for group in groups(model, images)]
    return float(np.concatenate([n < FAINT * n.max() for n in norms]).mean())
