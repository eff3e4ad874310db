"""A small problem that a small network learns in seconds."""

import numpy as np
import pytest
import torch

from foveate.data import Augment, from_arrays
from foveate.train import Recipe
from foveate.vision import VisionModel


@pytest.fixture
def squares():
    """Grey 8x8 images with a bright square in one of four corners: easy, but not by chance."""
    chance = np.random.default_rng(0)
    targets = np.arange(160) % 4
    images = chance.integers(0, 120, (160, 8, 8), dtype=np.uint8)
    for image, target in zip(images, targets, strict=True):
        row, column = divmod(int(target), 2)
        image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 100
    return from_arrays(images, targets, ["nw", "ne", "sw", "se"])


@pytest.fixture
def make_model():
    def make(name: str = "sprint_s", size: int = 8, **kwargs):
        torch.manual_seed(0)
        kwargs = {"dims": (8, 16), **kwargs} if name == "sprint_s" else kwargs
        return VisionModel.create(name, ["nw", "ne", "sw", "se"], size=size, **kwargs)

    return make


@pytest.fixture
def recipe():
    def make(**changes):
        fields = {
            "epochs": 3,
            "batch_size": 16,
            "optimizer": "sgd",
            "learning_rate": 0.5,
            "weight_decay": 5e-4,
            "augment": Augment(shift=0, flip=False),
            "checkpoint_every": 0,
        }
        return Recipe(**{**fields, **changes})

    return make
