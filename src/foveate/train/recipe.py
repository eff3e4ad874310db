"""Everything that decides a training, as data."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from foveate.data import Augment
from foveate.errors import FoveateError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained.

    Args:
        epochs: passes over the training images; or None to train for `minutes`.
        minutes: the schedule fits this time, evaluations included, and ends
            within it. With both, whichever ends first.
        batch_size: images a step, over all processes and accumulated parts.
        accumulate: parts that a process's share of a batch is worked off in.
        optimizer: `adamw`, `sgd`, `muon`, any other of timm's or torch's names.
        learning_rate: the peak.
        momentum: of optimisers that have one.
        weight_decay: for matrices and filters; norms, biases and what the
            backbone names are left out.
        layer_decay: factor on the learning rate a layer nearer to the input.
        warmup: share of the training in which the learning rate rises.
        schedule: `cosine` or `linear` descent after it, or `constant`.
        final: the last learning rate as a share of the peak.
        label_smoothing: share of each target given to all classes alike.
        augment: what happens to training images.
        ema: decay of the averaged weights that are evaluated and kept; 0 for none.
        clip: largest norm of the gradients; 0 for no limit.
        drop_path: largest rate of stochastic depth, for backbones that have it.
        precision: `float32`, `bfloat16`, or `auto`: bfloat16 if a step measures
            clearly faster with it on this machine.
        evaluate_every: epochs between evaluations on the validation split.
        checkpoint_every: seconds between checkpoints.
        keep: newest checkpoints that are kept.
        patience: evaluations without a better one after which training ends; 0 for never.
        seed: decides order, augmentation and the noise inside the model.

    Raises: FoveateError that names the field.
    """

    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    warmup: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final: float = 0.0
    label_smoothing: float = 0.1
    augment: Augment = field(default_factory=Augment)
    ema: float = 0.0
    clip: float = 0.0
    drop_path: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    evaluate_every: float = 1.0
    checkpoint_every: float = 30.0
    keep: int = 2
    patience: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs is None and self.minutes is None:
            self._refuse("epochs", "give epochs or minutes as the budget")
        for name in ("epochs", "minutes", "learning_rate", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                self._refuse(name, "give a number above 0")
        for name in ("batch_size", "accumulate", "keep"):
            if getattr(self, name) < 1:
                self._refuse(name, "give 1 or more")
        for name in ("momentum", "warmup", "final", "label_smoothing", "ema", "drop_path"):
            if not 0 <= getattr(self, name) <= 1:
                self._refuse(name, "give 0 to 1")
        for name in ("weight_decay", "clip", "patience", "checkpoint_every"):
            if getattr(self, name) < 0:
                self._refuse(name, "give 0 or more")
        if not 0 < self.layer_decay <= 1:
            self._refuse("layer_decay", "give a factor above 0, at most 1")
        if self.schedule not in ("cosine", "linear", "constant"):
            self._refuse("schedule", "choose cosine, linear or constant")
        if self.precision not in ("auto", "float32", "bfloat16"):
            self._refuse("precision", "choose auto, float32 or bfloat16")

    def _refuse(self, name: str, mend: str) -> None:
        raise FoveateError(f"recipe.{name} is {getattr(self, name)!r}: {mend}")

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate as a share of the peak, at `progress` in [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        along = min((progress - self.warmup) / max(1 - self.warmup, 1e-9), 1.0)
        if self.schedule == "constant":
            return 1.0
        descent = 1 - along if self.schedule == "linear" else (1 + math.cos(math.pi * along)) / 2
        return self.final + (1 - self.final) * descent

    def to_json(self) -> dict[str, Any]:
        """The fields, JSON-ready."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Recipe":
        """The opposite of `to_json`."""
        augment: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields["augment"].items()
        }
        return cls(**{**fields, "augment": Augment(**augment)})
