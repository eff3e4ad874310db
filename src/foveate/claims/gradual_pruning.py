"""A wide network that was pruned while it learned beats a narrow one of as many weights."""

from functools import partial
from itertools import pairwise

import numpy as np
from torch import nn

from foveate.claims import Finding, Lab, claim
from foveate.measure import mean_interval
from foveate.ops.conv_norm import ConvNorm
from foveate.surgery.gradual_pruning import MaskSmallest
from foveate.surgery.masks import Mask, sparsity
from foveate.train.gradual_pruning import GradualPruning
from foveate.vision import Preprocess, VisionModel

SIZE, SEEDS, SPARSITY, EPOCHS = 8, 6, 0.75, 12.0
SMALL = (3, 8, 16, 16)


@claim(
    "gradual_pruning",
    says="A network of twice the width, pruned to a quarter of its weights by the cubic schedule, "
    "is more accurate than a dense one of as many weights, trained as long.",
    paper="large and sparse beats small and dense of equal footprint consistently, with up to 10 "
    "times fewer numbers that are not zero at little loss (abstract)",
    minutes=2.0,
)
def large_and_sparse_beats_small_and_dense(lab: Lab) -> Finding:
    found: dict[str, list[float]] = {}
    recipe = lab.recipe(epochs=EPOCHS)
    for seed in range(lab.seed, lab.seed + SEEDS):
        small, large = (plain_model(lab, width, seed) for width in (1, 2))
        sparse, _ = Mask().apply(large)
        closing = GradualPruning(SPARSITY, begin=0.1, end=0.7, every=10)
        figures = {
            "small_dense": lab.train_on(small, recipe, seed),
            "large_sparse": lab.train_on(sparse, recipe, seed, (closing,)),
            "large_dense": lab.train_on(large, recipe, seed),
        }
        at_once, _ = MaskSmallest(sparsity=SPARSITY).apply(large)
        figures["large_pruned_at_once"] = lab.train_on(at_once, lab.recipe(epochs=4.0), seed)
        counted = sparsity(sparse)
        figures["weights_of_large_sparse"] = counted.weights - counted.zeros
        figures["weights_of_small_dense"] = sparsity(small).weights
        for name, value in figures.items():
            found.setdefault(name, []).append(value)
    gained = 100 * (np.array(found["large_sparse"]) - np.array(found["small_dense"]))
    return Finding.above(
        0.0,
        mean_interval(gained),
        unit=" points",
        details={name: float(np.mean(values)) for name, values in found.items()},
        note=f"Three 3x3 convolutions, {lab.source} at {SIZE} pixels, {EPOCHS:g} epochs, {SEEDS} "
        "seeds; what is pruned at once had its 12 dense epochs and 4 more.",
    )


def plain(classes: int, width: float) -> nn.Module:
    """Three convolutions with batch norm and ReLU, and a linear layer."""
    dims = (3, *(int(width * dim) for dim in SMALL[1:]))
    parts: list[nn.Module] = []
    for dim, out in pairwise(dims):
        parts += [ConvNorm(dim, out, 3), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, classes))


def plain_model(lab: Lab, width: float, seed: int) -> VisionModel:
    """The same as a model with weights that the seed decides."""
    net = lab.make(partial(plain, len(lab.data.labels), width), seed)
    return VisionModel(net, Preprocess(size=SIZE), lab.data.labels)
