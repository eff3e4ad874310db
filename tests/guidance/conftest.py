"""A small network that knows digits, judged in PyTorch, with a stopwatch that counts instead."""

from functools import partial

import pytest
import torch
from counting_watch import counted

from foveate import VisionModel, data
from foveate.data import Augment
from foveate.train import Recipe, train


@pytest.fixture(scope="session")
def digits():
    return data.open("digits")


@pytest.fixture(scope="session")
def trained(digits, tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = VisionModel.create("sprint_s", digits.labels, size=16)
    recipe = Recipe(
        epochs=3,
        batch_size=64,
        optimizer="sgd",
        learning_rate=0.1,
        weight_decay=5e-4,
        augment=Augment(shift=1, flip=False),
    )
    train(model, digits, recipe, tmp_path_factory.mktemp("run"), progress=False)
    return model.eval()


@pytest.fixture
def in_pytorch():
    """How `guide` is told to depend on nothing but numbers."""
    return {"runtime": "PyTorch", "stopwatch": counted, "now": partial(float, 0)}
