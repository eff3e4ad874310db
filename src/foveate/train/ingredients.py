"""Ingredients: what papers add to the one training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from foveate.data import Batch
from foveate.errors import require
from foveate.surgery.masks import masked

if TYPE_CHECKING:
    from foveate.train.loop import Training


class Ingredient:
    """A change to the training loop. Override the hooks that it needs.

    Hooks are called in the order in which ingredients are listed. What an
    ingredient must remember over a resumption goes through `state` and
    `load_state`.
    """

    def start(self, training: Training) -> None:
        """Before the first step, and again after a resumption."""

    def batch(self, training: Training, batch: Batch) -> Batch:
        """Change what a step sees."""
        return batch

    def loss(self, training: Training, logits: Tensor, targets: Tensor, loss: Tensor) -> Tensor:
        """Change or replace the loss, a scalar."""
        return loss

    def gradients(self, training: Training) -> None:
        """Change the gradients, after they were averaged over the processes."""

    def step_end(self, training: Training) -> None:
        """After the weights were updated."""

    def epoch_end(self, training: Training) -> None:
        """After an epoch's last step."""

    def logged(self, training: Training, line: dict[str, float | int | str]) -> None:
        """A line went to metrics.jsonl."""

    def state(self) -> dict[str, Tensor]:
        """What a resumption needs."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """The opposite of `state`."""


class ClipGradients(Ingredient):
    """Scale the gradients down to a norm.

    Args:
        norm: the largest that is allowed.
    """

    def __init__(self, norm: float) -> None:
        self.norm = norm

    def gradients(self, training: Training) -> None:
        torch.nn.utils.clip_grad_norm_(training.model.parameters(), self.norm)


class AverageWeights(Ingredient):
    """An exponential moving average of weights and statistics, evaluated in their stead.

    The decay warms up as (1 + steps) / (10 + steps), so that short trainings
    are averaged over their end only.

    Args:
        decay: the largest.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: dict[str, Tensor] = {}

    def start(self, training: Training) -> None:
        if not self._average:
            self._average = {k: v.clone() for k, v in _floats(training.model).items()}

    def step_end(self, training: Training) -> None:
        decay = min(self.decay, (1 + training.clock.step) / (10 + training.clock.step))
        now = _floats(training.model)
        kept = [self._average[name] for name in now]
        torch._foreach_lerp_(kept, list(now.values()), 1 - decay)  # pyright: ignore

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within, the model has the averaged weights."""
        now = _floats(model)
        kept = {k: v.clone() for k, v in now.items()}
        with torch.no_grad():
            for name, value in self._average.items():
                now[name].copy_(value)
            for weight in masked(model).values():
                weight.hold()
            try:
                yield
            finally:
                for name, value in kept.items():
                    now[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        return self._average

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._average = state


class TensorBoard(Ingredient):
    """Writes what goes to metrics.jsonl to TensorBoard as well; needs the extra `train`.

    Args:
        folder: where its event files go.
    """

    def __init__(self, folder: Path) -> None:
        require("tensorboard", "train")
        self.folder = folder

    def start(self, training: Training) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=training.clock.step + 1)

    def logged(self, training: Training, line: dict[str, float | int | str]) -> None:
        for name, value in line.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"{line['kind']}/{name}", value, int(line["step"]))
        self._writer.flush()


def _floats(model: nn.Module) -> dict[str, Tensor]:
    """Weights and floating-point statistics of a model, by name, detached."""
    return {k: v for k, v in model.state_dict().items() if v.dtype.is_floating_point}
