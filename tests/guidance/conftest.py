"""A small network that knows digits, judged in PyTorch, with a stopwatch that counts instead."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from counting_watch import counted, small_net

from foveate import VisionModel, data
from foveate.vision import Preprocess


@pytest.fixture(scope="session")
def digits():
    """With 60 images to judge by and 70 to tell at last."""
    whole = data.open("digits")
    counts = {"val": 60, "test": 70}
    few = {name: whole.splits[name].subset(np.arange(n)) for name, n in counts.items()}
    return replace(whole, splits={**whole.splits, **few})


@pytest.fixture(scope="session")
def trained(digits, taught, tmp_path_factory):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = VisionModel(small_net(), Preprocess(size=16), digits.labels)
    return taught(model, digits, 3, tmp_path_factory.mktemp("run")).eval()


@pytest.fixture
def in_pytorch():
    """How `guide` is told to depend on nothing but numbers."""
    return {"runtime": "PyTorch", "stopwatch": counted, "now": lambda: 0.0}
