"""Low frequencies are an ideal low pass; the curriculum ends whole, and goes on bit for bit."""

import contextlib
import math

import numpy as np
import pytest
import torch

from foveate.backbones import create_model
from foveate.data import Augment
from foveate.data import open as open_data
from foveate.errors import FoveateError
from foveate.train import Ingredient, Recipe, train
from foveate.train.efficienttrain import SCHEDULE, EfficientTrain, low_frequencies
from foveate.vision import Preprocess, VisionModel


@pytest.mark.paper("efficienttrain")
@pytest.mark.parametrize(("whole", "side"), [(16, 9), (15, 8), (12, 12)])
def test_an_ideal_low_pass(whole, side):
    """Waves below the cut are the same waves, sampled more coarsely; those above it are gone."""
    rng = np.random.default_rng(0)

    def image(n, waves):
        at = np.arange(n) / n
        y, x = np.meshgrid(at, at, indexing="ij")
        out = np.full((n, n), 0.5)
        for a, b, size, phase in waves:
            out += size * np.cos(2 * math.pi * (a * y + b * x) + phase)
        return torch.from_numpy(out).float()[None, None]

    most = (side - 1) // 2
    low = [
        (int(rng.integers(0, most + 1)), int(rng.integers(0, most + 1)), 0.05, rng.random())
        for _ in range(4)
    ]
    high = [(whole // 2 - 1, 1, 0.05, 0.3)] if side < whole - 3 else []
    found = low_frequencies(image(whole, low + high), side)
    torch.testing.assert_close(found, image(side, low), atol=1e-5, rtol=1e-5)


def test_bytes_and_means():
    images = torch.randint(100, 150, (2, 3, 16, 16), dtype=torch.uint8)
    small = low_frequencies(images, 10)
    torch.testing.assert_close(small.mean((2, 3)), images.float().mean((2, 3)) / 255)


@pytest.mark.paper("efficienttrain")
def test_the_published_schedule():
    """160 pixels for the first 60%, 192 for a fifth, 224 for the last fifth."""
    ours = EfficientTrain()
    sides = [ours.side(224, progress) for progress in (0.0, 0.59, 0.6, 0.79, 0.8, 1.0)]
    assert sides == [160, 160, 192, 192, 224, 224]
    assert SCHEDULE[-1] == (1.0, 1.0)


class Watch(Ingredient):
    """Keeps what a step saw."""

    def __init__(self):
        self.sides, self.magnitudes, self.validated = [], [], []

    def batch(self, training, batch):
        self.sides.append(batch.images.shape[-1])
        self.magnitudes.append(training.batches.augment.magnitude)
        return batch

    def epoch_end(self, training):
        self.validated.append(training.model.preprocess.size)


def run(folder, steps=None, epochs=5.0):
    torch.manual_seed(0)
    labels = [str(i) for i in range(10)]
    model = VisionModel(create_model("sprint_s", num_classes=10), Preprocess(size=16), labels)
    recipe = Recipe(
        epochs=epochs,
        batch_size=512,
        learning_rate=0.01,
        optimizer="sgd",
        augment=Augment(shift=1, flip=False, randaugment=1),
        evaluate_every=1e9,
        checkpoint_every=1e-9,
    )
    watch = Watch()
    stop = [Stop(steps)] if steps else []
    data = open_data("digits")
    ingredients = [EfficientTrain(), watch, *stop]
    with contextlib.suppress(KeyboardInterrupt):
        train(model, data, recipe, folder, ingredients=ingredients, progress=False)
    return model, watch


class Stop(Ingredient):
    def __init__(self, after):
        self.left = after

    def batch(self, training, batch):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return batch


def test_it_joins_the_loop(tmp_path):
    model, watch = run(tmp_path / "run")
    assert sorted(set(watch.sides)) == [12, 14, 16]
    assert watch.sides == sorted(watch.sides)
    assert watch.magnitudes[0] == 0
    assert watch.magnitudes == sorted(watch.magnitudes)
    assert max(watch.magnitudes) > 5
    assert set(watch.validated) == {16}
    assert model.preprocess.size == 16


def test_it_goes_on_bit_for_bit(tmp_path):
    whole, _ = run(tmp_path / "whole")
    run(tmp_path / "parts", steps=5)
    parts, _ = run(tmp_path / "parts")
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_schedules_that_do_not_end_whole():
    for schedule in ((), ((0.5, 1.0),), ((0.8, 0.5), (0.5, 0.7), (1.0, 1.0))):
        with pytest.raises(FoveateError, match="whole"):
            EfficientTrain(schedule)
