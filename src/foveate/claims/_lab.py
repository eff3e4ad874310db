"""The Lab: what every claim measures with, so that all of them measure alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.backbones import create_model
from foveate.backbones.stm_evaluation import Mixer, at_equal
from foveate.data import Augment, Dataset
from foveate.data import open as open_data
from foveate.measure import Count, Ratio, Timing, count, mean_interval, paired, side_by_side
from foveate.train import Ingredient, Recipe, evaluate, train
from foveate.vision import Preprocess, VisionModel

Builder = Callable[[], nn.Module]
FEWEST, MOST = 5, 24
"""Pairs of trainings of a comparison."""


@dataclass
class Lab:
    """Where a claim is measured.

    Args:
        minutes: to spend on a claim, about; its author decides what fits.
        source: images to train on, as `foveate.data.open` takes them.
        seed: the first of the seeds.
        device: where modules run.
    """

    minutes: float = 1.0
    source: str = "digits"
    seed: int = 0
    device: str = "cpu"

    channels_last = torch.channels_last

    def __post_init__(self) -> None:
        self._begun = time.monotonic()

    # ------------------------------------------------------------ things to measure with

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers of a shape, the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(shape, generator=generator).to(self.device)

    def make(self, build: Builder, seed: int | None = None) -> nn.Module:
        """A module with weights that the seed decides, ready to be used."""
        torch.manual_seed(self.seed if seed is None else seed)
        return build().to(self.device).to(memory_format=torch.channels_last)  # pyright: ignore

    @cached_property
    def data(self) -> Dataset:
        """The images."""
        return open_data(self.source, seed=self.seed)

    @property
    def minutes_left(self) -> float:
        """Of the claim's own minutes."""
        return max(0.0, self.minutes - (time.monotonic() - self._begun) / 60)

    # ------------------------------------------------------------ speed, memory, counts

    def speed(self, slow: nn.Module, fast: nn.Module, x: Tensor, share: float = 0.3) -> Ratio:
        """Time of one forward pass over that of another, in interleaved pairs.

        Args:
            slow, fast: modules that take x.
            share: of the claim's minutes.
        """
        calls = [self._forward(module, x) for module in (slow, fast)]
        return paired(*calls, seconds=self.minutes * 60 * share)

    def training_speed(
        self, slow: nn.Module, fast: nn.Module, x: Tensor, share: float = 0.3
    ) -> Ratio:
        """The same of forward and backward passes."""
        calls = [self._forward_and_backward(module, x) for module in (slow, fast)]
        return paired(*calls, seconds=self.minutes * 60 * share)

    def times(
        self, modules: Mapping[str, nn.Module], x: Tensor, share: float = 0.3
    ) -> dict[str, Timing]:
        """Time of a forward pass of each, in turn."""
        calls = {name: self._forward(module, x) for name, module in modules.items()}
        return side_by_side(calls, seconds=self.minutes * 60 * share / len(calls))

    def ratio(self, slow: Callable[[], Any], fast: Callable[[], Any], share: float = 0.3) -> Ratio:
        """Time of any call over that of another, in interleaved pairs."""
        return paired(slow, fast, seconds=self.minutes * 60 * share)

    def count(self, module: nn.Module, x: Tensor) -> Count:
        """What a forward pass costs."""
        return count(module, x)

    def _forward(self, module: nn.Module, x: Tensor) -> Callable[[], Any]:
        module.eval()

        @torch.inference_mode()
        def call() -> None:
            module(x)
            self._wait()

        return call

    def _forward_and_backward(self, module: nn.Module, x: Tensor) -> Callable[[], Any]:
        module.train()

        def call() -> None:
            module.zero_grad(set_to_none=True)
            module(x).square().mean().backward()
            self._wait()

        return call

    def _wait(self) -> None:
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()

    # ------------------------------------------------------------ accuracy

    def accuracies(
        self,
        builders: Mapping[str, Callable[[int], nn.Module]],
        recipe: Recipe,
        seeds: Sequence[int],
        size: int,
    ) -> dict[str, np.ndarray]:
        """Test accuracy of each, trained alike, float (seeds,): entry i of all had seed i.

        Args:
            builders: each takes the number of classes and gives a network.
            recipe: how all are trained; its seed is replaced.
            seeds: decide weights, order and augmentation.
            size: side of the images.
        """
        return {
            name: np.array([self.accuracy(build, recipe, seed, size) for seed in seeds])
            for name, build in builders.items()
        }

    def accuracy(
        self,
        build: Callable[[int], nn.Module],
        recipe: Recipe,
        seed: int,
        size: int,
        ingredients: Sequence[Ingredient] = (),
    ) -> float:
        """Test accuracy of one training, in which methods may take part."""
        model = self.trained(build, recipe, seed, size, ingredients)
        return evaluate(model, self.data.splits["test"]).top1

    def trained(
        self,
        build: Callable[[int], nn.Module],
        recipe: Recipe,
        seed: int,
        size: int,
        ingredients: Sequence[Ingredient] = (),
    ) -> VisionModel:
        """What one training makes, for claims that judge it in their own way."""
        labels = self.data.labels
        backbone = self.make(partial(build, len(labels)), seed)
        model = VisionModel(backbone, Preprocess(size=size), labels, {"name": "in the lab"})
        self._train(model, recipe, seed, ingredients)
        return model

    def train_on(
        self,
        model: nn.Module,
        recipe: Recipe,
        seed: int,
        ingredients: Sequence[Ingredient] = (),
    ) -> float:
        """Train a VisionModel that is there, such as an edited one, in place; its test accuracy."""
        assert isinstance(model, VisionModel)
        self._train(model, recipe, seed, ingredients)
        return evaluate(model, self.data.splits["test"]).top1

    def _train(
        self, model: VisionModel, recipe: Recipe, seed: int, ingredients: Sequence[Ingredient]
    ) -> None:
        with TemporaryDirectory() as folder:
            train(
                model,
                self.data,
                replace(recipe, seed=seed),
                Path(folder),
                ingredients=ingredients,
                progress=False,
            )

    def gain(
        self,
        ours: Callable[[int], nn.Module],
        theirs: Callable[[int], nn.Module],
        recipe: Recipe,
        size: int,
    ) -> tuple[float, float, float]:
        """Points of test accuracy by which one network beats another, mean and interval.

        Both are trained with the same seeds, and pair by pair until the claim's
        minutes are over: at least `FEWEST` pairs and at most `MOST`.

        Args:
            ours, theirs: each takes the number of classes and gives a network.
            recipe: how both are trained.
            size: side of the images.
        """
        return self.paired_gain(
            lambda seed: self.accuracy(ours, recipe, seed, size),
            lambda seed: self.accuracy(theirs, recipe, seed, size),
        )

    def paired_gain(
        self, ours: Callable[[int], float], theirs: Callable[[int], float]
    ) -> tuple[float, float, float]:
        """The same of any two ways from a seed to an accuracy."""
        gained: list[float] = []
        while len(gained) < FEWEST or (len(gained) < MOST and self.minutes_left > 0):
            seed = self.seed + len(gained)
            gained.append(100 * (ours(seed) - theirs(seed)))
        figure, low, high = mean_interval(np.array(gained))
        return figure, low, high

    def fit(
        self,
        net: nn.Module,
        batch: Callable[[int], tuple[Tensor, Tensor]],
        loss: Callable[[Tensor, Tensor], Tensor],
        steps: int,
        learning_rate: float = 3e-3,
    ) -> nn.Module:
        """Train a module on a made-up task, for claims that no images of ours can judge.

        Args:
            net: trained in place by AdamW, its learning rate falling linearly to 0.
            batch: inputs and targets of a step.
            loss: of outputs and targets.
            steps: how many there are.
            learning_rate: at the beginning.

        Returns: the same module, ready to be used.
        """
        optimizer = torch.optim.AdamW(net.parameters(), learning_rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        net.train()
        for step in range(steps):
            x, y = batch(step)
            optimizer.zero_grad(set_to_none=True)
            loss(net(x.to(self.device)), y.to(self.device)).backward()
            optimizer.step()
            schedule.step()
        return net.eval()

    def named(self, name: str) -> Callable[[int], nn.Module]:
        """A builder of an architecture by name."""
        return lambda classes: create_model(name, num_classes=classes)

    def in_skeleton(
        self, mixer: Mixer, params: int = 60_000, size: int = 8
    ) -> Callable[[int], nn.Module]:
        """A builder of the frame of stm_evaluation around a token mixer, at so many parameters."""

        def build(classes: int) -> nn.Module:
            return at_equal(
                mixer,
                params,
                "params",
                size=size,
                num_classes=classes,
                multiple=4,
                depths=(1, 1, 1),
            )

        return build

    def recipe(self, **fields: Any) -> Recipe:
        """A plain recipe that suits small nets on small images; `fields` change it."""
        flip = self.source != "digits"
        plain = {
            "epochs": 4.0,
            "batch_size": 64,
            "optimizer": "adamw",
            "learning_rate": 2e-3,
            "augment": Augment(shift=1, flip=flip),
            "evaluate_every": 1e9,
            "checkpoint_every": 1e9,
        }
        return Recipe(**{**plain, **fields})
