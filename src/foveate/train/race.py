"""Successive halving: train all a little, keep the better half, train those longer.

Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and
hyperparameter optimization" (arXiv 1502.07943, section 4).
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from foveate.train.loop import Outcome
from foveate.train.recipe import Recipe


@dataclass
class Runner:
    """One model in a race.

    Args:
        name: what the table calls it.
        recipe: how it is trained; its budget is set by the race.
        train: trains it anew from the same beginning, by a recipe, in a folder.
    """

    name: str
    recipe: Recipe
    train: Callable[[Recipe, Path], Outcome]
    rungs: list[dict[str, float]] = field(default_factory=list)

    @property
    def top1(self) -> float | None:
        """Validation accuracy on the last rung that it reached."""
        return self.rungs[-1]["top1"] if self.rungs else None


def race(
    runners: list[Runner],
    folder: Path,
    *,
    minutes: float | None = None,
    epochs: float | None = None,
    told: Callable[[Runner], None] = lambda runner: None,
) -> Runner:
    """Find the runner that learns best within a budget for all of them together.

    Every rung gets an equal share of the budget, divided among those still in
    it, so the survivors of each halving train twice as long as before. Each
    rung is a whole training: its schedule comes to its end.

    Args:
        runners: who takes part; their `rungs` are filled in.
        folder: where the trainings leave their checkpoints; removed at the end.
        minutes, epochs: the budget of the whole race; give one of them.
        told: called after each runner's rung.

    Returns: the winner. A single runner wins without running.
    """
    rungs = math.ceil(math.log2(len(runners))) if len(runners) > 1 else 0
    alive = list(runners)
    for rung in range(rungs):
        share = 1 / (rungs * len(alive))
        for runner in alive:
            recipe = replace(
                runner.recipe,
                minutes=minutes * share if minutes is not None else None,
                epochs=epochs * share if epochs is not None else None,
            )
            place = folder / f"{runner.name.replace('/', '-')}-{rung}"
            outcome = runner.train(recipe, place)
            runner.rungs.append(
                {
                    "minutes": outcome.seconds / 60,
                    "epochs": outcome.epochs,
                    "top1": outcome.top1,
                    "images_per_second": outcome.images_per_second,
                }
            )
            told(runner)
        alive.sort(key=lambda runner: runner.rungs[-1]["top1"], reverse=True)
        alive = alive[: math.ceil(len(alive) / 2)]
    shutil.rmtree(folder, ignore_errors=True)
    return alive[0]
