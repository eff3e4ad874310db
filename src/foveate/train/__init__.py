"""Training: one loop, one recipe type, ingredients."""

from foveate.train.distributed import World
from foveate.train.evaluate import Evaluation, evaluate
from foveate.train.ingredients import (
    AverageWeights,
    ClipGradients,
    Ingredient,
    TensorBoard,
)
from foveate.train.loop import Outcome, Training, train
from foveate.train.race import Runner, race
from foveate.train.recipe import Recipe

__all__ = [
    "AverageWeights",
    "ClipGradients",
    "Evaluation",
    "Ingredient",
    "Outcome",
    "Recipe",
    "Runner",
    "TensorBoard",
    "Training",
    "World",
    "evaluate",
    "race",
    "train",
]
