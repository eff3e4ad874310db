"""The training loop. There is one, and methods from papers join it as ingredients."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from foveate import memory
from foveate.data import Batch, Batches, Dataset
from foveate.errors import FoveateError
from foveate.measure import Ceilings, ceilings, count
from foveate.ops.kernels import accelerated
from foveate.surgery.masks import masked
from foveate.train.checkpoint import Shelf, load, pack_optimizer, save, unpack_optimizer
from foveate.train.clock import Clock
from foveate.train.distributed import World
from foveate.train.evaluate import evaluate
from foveate.train.ingredients import AverageWeights, ClipGradients, Ingredient
from foveate.train.optim import make_optimizer
from foveate.train.pace import Pace
from foveate.train.precision import choose_precision
from foveate.train.progress import Bar
from foveate.train.recipe import Recipe
from foveate.vision import VisionModel

LOG_EVERY = 10
"""Steps between two lines in metrics.jsonl."""


@dataclass(frozen=True)
class Outcome:
    """What a training came to. The model holds the best weights.

    Attributes:
        top1: the best accuracy on the validation split, in [0, 1].
        best_epoch: when that was.
        epochs, steps, seconds: what was used, over all processes that resumed it.
        images_per_second: while stepping.
        waited: share of the time of stepping in which no batch was ready, in [0, 1].
        flops_per_second: in matrix products and convolutions, the backward pass counted as two
            forward passes.
        precision: what the steps were computed in.
    """

    top1: float
    best_epoch: float
    epochs: float
    steps: int
    seconds: float
    images_per_second: float
    waited: float
    flops_per_second: float
    precision: str

    def share_of_roof(self, roof: Ceilings | None = None) -> float:
        """Share of the processor's arithmetic that the steps used, where it was not a GPU's.

        Args:
            roof: the machine's ceilings in float32, measured if not given.
        """
        return self.flops_per_second / (roof or ceilings()).flops


def train(
    model: VisionModel,
    data: Dataset,
    recipe: Recipe,
    folder: Path,
    *,
    ingredients: Sequence[Ingredient] = (),
    progress: bool = True,
) -> Outcome:
    """Train a model, or go on where a training in `folder` was stopped.

    A training with a budget of epochs that was killed at any instant and
    resumed ends with the same bits as one that was left alone.

    Args:
        model: trained in place.
        data: `train` trains; `val` judges, or `train` where there is no `val`.
        recipe: how.
        folder: gets `metrics.jsonl` and `checkpoints/`.
        ingredients: methods that take part, in this order.
        progress: show a bar, or a line an evaluation where there is no terminal.

    Raises: FoveateError if the loss is no longer finite, if the disk is full, or
        if `folder` holds another training.
    """
    training = Training(model, data, recipe, folder, ingredients)
    with training.under_way(), Bar(progress and training.world.leads) as bar:
        while not training.is_over:
            for batch in training.rest_of_epoch():
                training.step(batch)
                training.log(bar)
                if training.evaluation_is_due:
                    training.evaluate(bar)
                training.checkpoint_if_due()
                if training.is_over:
                    break
        if training.evaluated_at != training.clock.step:
            training.evaluate(bar)
        training.checkpoint()
    return training.finish()


class Training:
    """A training under way: what the loop's lines do, and what ingredients see.

    Attributes:
        model, data, recipe, world: what they were made with.
        clock: steps and progress.
        pace: speed, and what was waited for.
        optimizer: updated in every step.
    """

    def __init__(
        self,
        model: VisionModel,
        data: Dataset,
        recipe: Recipe,
        folder: Path,
        ingredients: Sequence[Ingredient],
    ) -> None:
        self.world = World.join()
        self.model = model.to(self.world.device).to(memory_format=torch.channels_last)  # pyright: ignore
        self.data, self.recipe = data, recipe
        self.batches = self._make_batches()
        self.val = data.splits["val"] if len(data.splits["val"]) else data.splits["train"]
        self.optimizer = make_optimizer(model, recipe)
        self.average = AverageWeights(recipe.ema) if recipe.ema else None
        own = [ClipGradients(recipe.clip)] if recipe.clip else []
        self.ingredients = [*own, *([self.average] if self.average else []), *ingredients]
        self._masked = list(masked(self.model).values())
        self.clock = self._make_clock()
        self.precision = recipe.precision
        self.forget_best()
        self.evaluated_at, self._next_evaluation = -1, recipe.evaluate_every
        self._sums = [0.0, 0.0, 0.0]
        self.pace = Pace()
        self._saved_at = time.monotonic()
        self._shelf = Shelf(folder / "checkpoints", recipe.keep)
        self._metrics = folder / "metrics.jsonl"
        self._resume()

    # ------------------------------------------------------------ the loop's questions

    @property
    def epoch(self) -> float:
        """Epochs made so far."""
        return self.clock.step / self.batches.steps

    @property
    def is_over(self) -> bool:
        """Whether the budget or the patience is used up."""
        return self.clock.is_over or (0 < self.recipe.patience <= self._worse)

    @property
    def evaluation_is_due(self) -> bool:
        """Whether `evaluate_every` epochs have passed."""
        return self.epoch >= self._next_evaluation or self.clock.is_over

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Within, the process and the model are as steps want them; after it, as they were."""
        with memory.kept(), self.world.shared_batch_norms(self.model), accelerated(self.model):
            yield

    def rest_of_epoch(self) -> Iterator[Batch]:
        """Batches from where the training stands to the end of the epoch."""
        epoch, start = divmod(self.clock.step, self.batches.steps)
        return self.pace.batches(self.batches, epoch, start)

    # ------------------------------------------------------------ the loop's deeds

    def step(self, batch: Batch) -> None:
        """One update of the weights."""
        torch.manual_seed((self.recipe.seed * 1_000_003 + self.clock.step) * 4099 + self.world.rank)
        self._set_learning_rate()
        self.model.train()
        for ingredient in self.ingredients:
            batch = ingredient.batch(self, batch)
        loss, hits = self._gradients(batch)
        self.world.average_gradients(self.model)
        for ingredient in self.ingredients:
            ingredient.gradients(self)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for weight in self._masked:
            weight.hold()
        loss, hits = self.world.sum(loss / self.world.size, hits)
        if not math.isfinite(loss):
            raise FoveateError(
                f"the loss became {loss} at step {self.clock.step}: lower the learning rate "
                f"(it is {self.recipe.learning_rate:g}); the last good checkpoint is in "
                f"{self._shelf.folder}"
            )
        self._sums = [a + b for a, b in zip(self._sums, (1.0, loss, hits), strict=True)]
        before = self.clock.spent
        self.clock.tick()
        self.pace.stepped(self.batches.batch_size, self.clock.spent - before)
        self.clock.progress = self.world.agree(self.clock.progress)
        for ingredient in self.ingredients:
            ingredient.step_end(self)
            if self.clock.step % self.batches.steps == 0:
                ingredient.epoch_end(self)

    def log(self, bar: Bar) -> None:
        """Write the mean of the last steps, every `LOG_EVERY` of them."""
        if self.clock.step % LOG_EVERY:
            return
        steps, loss, hits = self._sums
        self._sums = [0.0, 0.0, 0.0]
        speed = self.pace.images_per_second
        bar.step(self.clock.progress, self.epoch, loss / steps, speed)
        self._write(
            kind="train",
            step=self.clock.step,
            epoch=self.epoch,
            loss=loss / steps,
            top1=hits / steps / self.batches.batch_size,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_second=speed,
            waited=self.pace.waited_share,
            seconds=self.clock.spent,
        )

    def evaluate(self, bar: Bar) -> None:
        """Judge the (averaged) weights on the validation split, and keep them if they are best."""
        mine = range(self.world.rank, len(self.val), self.world.size)
        part = (
            self.val.subset(torch.tensor(list(mine)).numpy()) if self.world.size > 1 else self.val
        )
        with self._averaged():
            result = evaluate(self.model, part, precision=self.precision)
            n, hits, loss = self.world.sum(
                len(part), result.top1 * len(part), result.loss * len(part)
            )
            top1 = hits / n
            loss /= n
            if (top1, -loss) > (self.best["top1"], -self.best["loss"]):
                self.best, self._worse = {"top1": top1, "loss": loss, "epoch": self.epoch}, 0
                if self.world.leads:
                    save(self._shelf.best, self.model.state_dict(), self.best)
            else:
                self._worse += 1
        self.evaluated_at = self.clock.step
        while self._next_evaluation <= self.epoch:
            self._next_evaluation += self.recipe.evaluate_every
        bar.evaluated(self.epoch, loss, top1, last=self.is_over)
        self.clock.lap()
        self._write(
            kind="eval",
            step=self.clock.step,
            epoch=self.epoch,
            loss=loss,
            top1=top1,
            seconds=self.clock.spent,
        )

    def forget_best(self) -> None:
        """Judge from here on: what is trained has become another model, such as a sparser one."""
        self.best, self._worse = {"top1": -1.0, "loss": float("inf"), "epoch": 0.0}, 0

    def checkpoint_if_due(self) -> None:
        """Keep the state if the last time is long enough ago."""
        if time.monotonic() - self._saved_at >= self.recipe.checkpoint_every:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Keep everything that a resumption needs."""
        if self.world.leads:
            tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
            packed, numbers = pack_optimizer(self.optimizer)
            for i, ingredient in enumerate(self.ingredients):
                tensors |= {f"ingredient/{i}/{k}": v for k, v in ingredient.state().items()}
            self._shelf.put(self.clock.step, {**tensors, **packed}, self._state(numbers))
        self.clock.lap()
        self._saved_at = time.monotonic()

    def finish(self) -> Outcome:
        """Put the best weights into the model."""
        self.world.wait()
        weights, _ = load(self._shelf.best)
        self.world.wait()
        self.model.load_state_dict(weights)
        self.model.eval()
        return Outcome(
            top1=self.best["top1"],
            best_epoch=self.best["epoch"],
            epochs=self.epoch,
            steps=self.clock.step,
            seconds=self.clock.spent,
            images_per_second=self.pace.images_per_second,
            waited=self.pace.waited_share,
            flops_per_second=6 * self._macs() * self.pace.images_per_second,
            precision=self.precision,
        )

    # ------------------------------------------------------------ how they are done

    def _make_batches(self) -> Batches:
        split = self.data.splits["train"]
        if not len(split):
            raise FoveateError(f"{self.data.source} has no training images: check its splits")
        return Batches(
            split=split,
            batch_size=self.recipe.batch_size,
            size=self.model.preprocess.size,
            augment=self.recipe.augment,
            classes=len(self.data.labels),
            seed=self.recipe.seed,
            rank=self.world.rank,
            world=self.world.size,
        )

    def _make_clock(self) -> Clock:
        epochs, minutes = self.recipe.epochs, self.recipe.minutes
        return Clock(
            max(1, round(epochs * self.batches.steps)) if epochs else None,
            minutes * 60 if minutes else None,
            closing_steps=0.5 * len(self.val) / self.batches.batch_size / self.world.size,
        )

    def _set_learning_rate(self) -> None:
        rate = self.recipe.learning_rate * self.recipe.learning_rate_at(self.clock.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]

    def _gradients(self, batch: Batch) -> tuple[float, float]:
        """Accumulate this process's gradients; its mean loss and number of hits."""
        device = self.world.device
        if self.precision == "auto":
            chosen = choose_precision(self.model, batch.images.to(device), len(self.data.labels))
            self.precision = "bfloat16" if self.world.agree(chosen == "bfloat16") else "float32"
            self.clock.lap(recurs=False)
        found = torch.zeros(2, dtype=torch.float64, device=device)
        for images, targets in zip(
            batch.images.chunk(self.recipe.accumulate),
            batch.targets.chunk(self.recipe.accumulate),
            strict=True,
        ):
            images, targets = images.to(device), targets.to(device)
            share = len(images) / len(batch.images)
            half = self.precision == "bfloat16"
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                logits = self.model(images)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
            for ingredient in self.ingredients:
                loss = ingredient.loss(self, logits, targets, loss)
            (loss * share).backward()
            hard = targets if targets.ndim == 1 else targets.argmax(1)
            found[0] += loss.detach().double() * share
            found[1] += (logits.argmax(1) == hard).sum()
        mean_loss, hits = found.tolist()
        return mean_loss, hits

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.applied(self.model) if self.average else nullcontext()

    def _macs(self) -> int:
        """Multiply-adds of one image's forward pass."""
        size = self.model.preprocess.size
        return count(self.model, torch.zeros(1, 3, size, size, device=self.world.device)).macs

    def _write(self, **line: Any) -> None:
        if self.world.leads:
            with self._metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")
        for ingredient in self.ingredients:
            ingredient.logged(self, line)

    # ------------------------------------------------------------ stopping and going on

    def _state(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {
            "training": self._identity(),
            "clock": self.clock.state(),
            "best": self.best,
            "evaluated_at": self.evaluated_at,
            "next_evaluation": self._next_evaluation,
            "worse": self._worse,
            "sums": self._sums,
            "precision": self.precision,
            "optimizer": numbers,
            "metrics_bytes": self._metrics.stat().st_size if self._metrics.exists() else 0,
        }

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be this training's."""
        recipe = replace(self.recipe, checkpoint_every=0.0, keep=1).to_json()
        images = {name: len(split) for name, split in self.data.splits.items()}
        facts = {"model": self.model.architecture, "images": images, "recipe": recipe}
        return json.loads(json.dumps(facts))

    def _resume(self) -> None:
        found = self._shelf.newest()
        if found is None:
            if self.world.leads:
                self._metrics.parent.mkdir(parents=True, exist_ok=True)
                self._metrics.unlink(missing_ok=True)
        else:
            self._restore(*found)
        for ingredient in self.ingredients:
            ingredient.start(self)
        self.world.wait()

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        self._insist_on_same(state["training"])
        self.model.load_state_dict(_below(tensors, "model/"))
        unpack_optimizer(
            self.optimizer, _below(tensors, "optimizer/", keep=True), state["optimizer"]
        )
        for i, ingredient in enumerate(self.ingredients):
            ingredient.load_state(_below(tensors, f"ingredient/{i}/"))
        self.clock.resume(state["clock"])
        self.best, self.precision = state["best"], state["precision"]
        self.evaluated_at, self._worse = state["evaluated_at"], state["worse"]
        self._next_evaluation, self._sums = state["next_evaluation"], state["sums"]
        if self.world.leads and self._metrics.exists():
            with self._metrics.open("r+b") as file:
                file.truncate(state["metrics_bytes"])

    def _insist_on_same(self, other: dict[str, Any]) -> None:
        mine = self._identity()
        differing = [key for key in mine if mine[key] != other.get(key)]
        if "recipe" in differing:
            fields = [k for k, v in mine["recipe"].items() if other["recipe"].get(k) != v]
            differing = [key for key in differing if key != "recipe"] + fields
        if differing:
            raise FoveateError(
                f"{self._shelf.folder} holds a training with another {', '.join(differing)}: "
                "give another folder, or the same settings to go on"
            )


def _below(tensors: dict[str, Tensor], prefix: str, keep: bool = False) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, which is cut off unless `keep`."""
    cut = 0 if keep else len(prefix)
    return {name[cut:]: t for name, t in tensors.items() if name.startswith(prefix)}
