"""The main job: from a source of images to a deployed, measured and explained model.

`fit` below is the story. Each stage leaves its result in the run's folder, so
that a run that was killed goes on with the stage that it was in. Under torchrun
the first process tells the story, and the others train along.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import ceil, log2
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import foveate
from foveate.backbones import family_recipe, require_name, suggest_models
from foveate.data import Augment, Dataset
from foveate.data import open as open_data
from foveate.deploy import export, latency, load, load_model
from foveate.deploy import save as save_model
from foveate.deploy.card import in_integers
from foveate.errors import FoveateError, require
from foveate.measure import count, machine
from foveate.report import analyse, write
from foveate.runs import Run
from foveate.train import (
    Ingredient,
    Outcome,
    Recipe,
    Runner,
    TensorBoard,
    World,
    evaluate,
    race,
    train,
)
from foveate.vision import VisionModel

RACE_SHARE = 0.1
CLOSING_MINUTES = 0.05
FINE_TUNING = {"optimizer": "adamw", "learning_rate": 3e-4, "layer_decay": 0.75, "warmup": 0.1}
SIDES = (16, 24, 32, 48, 64, 96, 128, 160, 192, 224)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person asks of a run.

    Args:
        source: images, as `foveate.data.open` takes them.
        minutes: time to look, choose and train in; export and report come after it.
        epochs: passes over the training images instead of a time.
        latency_ms: the most that one image may take on this machine.
        model: an architecture, or `auto` to race several.
        guard: points of top-1 that an exported format may lose.
        size: side of the images in pixels; by default what the images ask for.
        batch: images a step; by default the recipe's.
        seed: decides split, order, augmentation and initial weights.
        pretrained: begin with published weights.
        max_bad: stop if a larger share of the files cannot be used.
        tensorboard: write the curves for TensorBoard too, into `tensorboard/`.
    """

    source: str
    minutes: float | None = 10.0
    epochs: float | None = None
    latency_ms: float | None = None
    model: str = "auto"
    guard: float = 1.0
    size: int | None = None
    batch: int | None = None
    seed: int = 0
    pretrained: bool = False
    max_bad: float = 0.1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.epochs is None):
            raise FoveateError("give either --minutes or --epochs as the budget, not both")
        for name in ("minutes", "epochs", "latency_ms", "size", "batch"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise FoveateError(f"--{name.removesuffix('_ms')} is {value}: give more than 0")
        if not 0 <= self.guard <= 100:
            raise FoveateError(f"--guard is {self.guard}: give points between 0 and 100")
        if self.model != "auto":
            require_name(self.model)
        if self.tensorboard:
            require("tensorboard", "train")


def fit(asked: Asked, out: Path, *, command: str = "", quiet: bool = False) -> dict[str, Any]:
    """Make a model from images, or go on with a run that was stopped.

    Args:
        asked: source, budget and wishes.
        out: the run's folder, made if missing.
        command: what the report shows for doing it again.
        quiet: print nothing.

    Returns: what `run.json` holds: data, race, training, deploy, test, minutes;
        nothing in the processes that only train along.
    Raises: FoveateError for whatever a person can mend.
    """
    world = World.join()
    if not world.leads:
        train_along(asked, world)
        return {}
    console = Console(quiet=quiet, highlight=False)
    heading = {
        "foveate": foveate.__version__,
        "command": command,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": asked.source,
        "seed": asked.seed,
        "machine": machine(),
    }
    with Run(out, asdict(asked), heading) as run:
        if run.is_done:
            console.print(f"{out} is finished; its report: {out / 'report.html'}", soft_wrap=True)
            world.tell(None)
            return run.facts

        data, found = look(run, asked)
        print_look(found, console)

        choice = run.stage("race", lambda: choose(run, asked, data, console))
        print_choice(choice, console)

        training = run.stage("training", lambda: learn(run, asked, data, choice, quiet))
        print_training(training, console)
        world.tell(None)

        deploy = run.stage("deploy", lambda: compress(run, asked, data, console))
        print_formats(deploy["formats"], deploy.get("absent", {}), console)

        test = run.stage("test", lambda: examine(run, data))
        run.stage("report", lambda: {"file": write(out).name})
        print_test(test, out, console)
        return run.facts


# ---------------------------------------------------------------- look at the data


def look(run: Run, asked: Asked) -> tuple[Dataset, dict[str, Any]]:
    """Open the source; a resumed run opens it again and insists that it is the same."""
    start = time.monotonic()
    data = open_data(asked.source, seed=asked.seed, max_bad=asked.max_bad)
    if "data" not in run.facts:
        run.facts["minutes"]["data"] = (time.monotonic() - start) / 60
    found = run.stage("data", data.summary)
    if found["splits"] != data.summary()["splits"]:
        raise FoveateError(
            f"{asked.source} has changed since the run in {run.folder} began: "
            "bring the images back, or give another --out to begin anew"
        )
    return data, found


def side_for(data: Dataset, asked: Asked) -> int:
    """The side in pixels to train at: what was asked, else the smallest usual side that holds
    the median image."""
    if asked.size is not None:
        return asked.size
    width, height = data.summary()["sizes"]["median"]
    side = min(width, height)
    return next((usual for usual in SIDES if usual >= side), SIDES[-1])


# ---------------------------------------------------------------- choose a model


def choose(run: Run, asked: Asked, data: Dataset, console: Console) -> dict[str, Any]:
    """Measure as many candidates as the budget can race, drop those too slow, race the rest."""
    side = side_for(data, asked)
    names = [asked.model] if asked.model != "auto" else suggest_models(side)
    affordable = _affordable(asked, data)
    candidates, runners = [], []
    for name in names:
        if len(runners) == affordable:
            break
        row = weigh(name, side, data, asked)
        candidates.append(row)
        console.print(f"[dim]measured {name}: {row['latency_ms']['median']:.2f} ms[/dim]")
        if row["kept"]:
            recipe = recipe_for(name, side, data, asked)
            runners.append(Runner(name, recipe, partial(race_one, asked, data, name, side)))
    if not runners:
        fastest = min(candidates, key=lambda row: row["latency_ms"]["median"])
        raise FoveateError(
            f"no model meets --latency {asked.latency_ms:g}ms on this machine: the fastest, "
            f"{fastest['name']}, takes {fastest['latency_ms']['median']:.2f} ms at {side} pixels; "
            "raise --latency or give a smaller --size"
        )
    winner = race(
        runners,
        run.folder / "race",
        minutes=asked.minutes * RACE_SHARE if asked.minutes else None,
        epochs=asked.epochs * RACE_SHARE if asked.epochs else None,
        told=lambda r: console.print(f"[dim]raced {r.name}: {r.top1:.2%} on validation[/dim]"),
    )
    for row in candidates:
        runner = next((r for r in runners if r.name == row["name"]), None)
        row["rungs"] = runner.rungs if runner else []
        row["top1"] = runner.top1 if runner else None
        row["chosen"] = row["name"] == winner.name
    return {"size": side, "candidates": candidates, "left_out": names[len(candidates) :]}


def weigh(name: str, side: int, data: Dataset, asked: Asked) -> dict[str, Any]:
    """A candidate's size, work and latency, and whether the latency is allowed.

    Raises: FoveateError if the candidate does not take images of this size.
    """
    import torch

    model = build(name, side, data, replace(asked, pretrained=False))
    try:
        counted = count(model, torch.zeros(1, 3, side, side))
    except (AssertionError, RuntimeError, ValueError) as error:  # as other libraries' models do
        first = str(error).partition("\n")[0]
        raise FoveateError(
            f"{name} does not take images of {side} pixels a side ({first}): give another --size, "
            "or another --model"
        ) from error
    measured = latency(model)
    allowed = asked.latency_ms is None or measured.median * 1e3 <= asked.latency_ms
    return {
        "name": name,
        "params": counted.params,
        "macs": counted.macs,
        "latency_ms": measured.milliseconds(),
        "kept": allowed,
        "why": "" if allowed else f"slower than {asked.latency_ms:g} ms",
    }


def build(name: str, side: int, data: Dataset, asked: Asked) -> VisionModel:
    """The candidate, with weights that the seed decides."""
    import torch

    torch.manual_seed(asked.seed)
    return VisionModel.create(name, data.labels, size=side, pretrained=asked.pretrained)


def recipe_for(name: str, side: int, data: Dataset, asked: Asked) -> Recipe:
    """The family's own recipe, with what was asked and what the data calls for put in.

    A budget of epochs is computed in float32, whose results can be repeated bit
    for bit; a budget of minutes takes bfloat16 where that measures faster.
    """
    fields = family_recipe(name)
    if asked.pretrained:
        fields |= FINE_TUNING
    if asked.batch is not None:
        fields["batch_size"] = asked.batch
    crop = "pad" if side <= 80 else "resized"
    augment = Augment(crop=crop, shift=max(1, side // 16), flip=_flip(asked.source))
    return Recipe(
        epochs=asked.epochs,
        minutes=asked.minutes,
        augment=augment,
        precision="auto" if asked.minutes else "float32",
        seed=asked.seed,
        **fields,
    )


def _flip(source: str) -> Literal["alternate", False]:
    """Mirrored photographs show the same thing; mirrored digits do not."""
    return False if source == "digits" else "alternate"


def _affordable(asked: Asked, data: Dataset) -> int:
    """How many candidates the budget can race so that each learns something in its first rung."""
    if asked.minutes is None:
        return 4
    least = min(max(len(data.splits["train"]) / 1000, 3.0), 20.0)
    seconds = asked.minutes * 60 * RACE_SHARE
    able = [n for n in range(2, 9) if seconds / (n * ceil(log2(n))) >= least]
    return max(able, default=1)


# ---------------------------------------------------------------- train


def learn(
    run: Run, asked: Asked, data: Dataset, choice: dict[str, Any], quiet: bool
) -> dict[str, Any]:
    """Train the winner on what is left of the budget."""
    name = chosen_name(choice)
    if "recipe" not in run.facts:
        recipe = recipe_for(name, choice["size"], data, asked)
        if asked.minutes:
            left = asked.minutes - run.minutes_spent() - CLOSING_MINUTES
            recipe = replace(recipe, minutes=max(left, asked.minutes / 2))
        run.facts["recipe"] = recipe.to_json()
        run.save()
    recipe = Recipe.from_json(run.facts["recipe"])
    model, outcome = train_together(
        (name, choice["size"], recipe, run.folder),
        asked,
        data,
        ingredients=[TensorBoard(run.folder / "tensorboard")] if asked.tensorboard else [],
        progress=not quiet,
    )
    save_model(model, run.folder / "trained")
    on_processor = World.join().device.type == "cpu"
    return {
        "model": name,
        "epochs": outcome.epochs,
        "steps": outcome.steps,
        "minutes": outcome.seconds / 60,
        "images_per_second": outcome.images_per_second,
        "waited": outcome.waited,
        "share_of_roof": outcome.share_of_roof() if on_processor else None,
        "precision": outcome.precision,
        "best_epoch": outcome.best_epoch,
        "val_top1": outcome.top1,
    }


def chosen_name(choice: dict[str, Any]) -> str:
    """The architecture that won the race."""
    return next(row["name"] for row in choice["candidates"] if row["chosen"])


Order = tuple[str, int, Recipe, Path]
"""What is trained: an architecture, the side of its images, how, and in which folder."""


def train_together(
    order: Order,
    asked: Asked,
    data: Dataset,
    *,
    ingredients: Sequence[Ingredient] = (),
    progress: bool = False,
) -> tuple[VisionModel, Outcome]:
    """Build and train a model, together with the processes that train along."""
    World.join().tell(order)
    return carry_out(order, asked, data, ingredients, progress)


def carry_out(
    order: Order,
    asked: Asked,
    data: Dataset,
    ingredients: Sequence[Ingredient] = (),
    progress: bool = False,
) -> tuple[VisionModel, Outcome]:
    """This process's part of a training."""
    name, side, recipe, folder = order
    model = build(name, side, data, asked)
    return model, train(model, data, recipe, folder, ingredients=ingredients, progress=progress)


def race_one(
    asked: Asked, data: Dataset, name: str, side: int, recipe: Recipe, folder: Path
) -> Outcome:
    """One runner's training in a race."""
    return train_together((name, side, recipe, folder), asked, data)[1]


def train_along(asked: Asked, world: World) -> None:
    """What processes other than torchrun's first do: train whatever the first one trains."""
    data = open_data(asked.source, seed=asked.seed, max_bad=asked.max_bad)
    while order := world.tell(None):
        carry_out(order, asked, data)


# ---------------------------------------------------------------- export, test


def compress(run: Run, asked: Asked, data: Dataset, console: Console) -> dict[str, Any]:
    """Export in every format, and choose the fastest that keeps the accuracy."""
    model = load_model(run.folder / "trained")
    with console.status("exporting") as status:
        made = export(
            model,
            data,
            run.folder / "model",
            guard=asked.guard,
            told=lambda text: status.update(text),
        )
    return {
        "guard": asked.guard,
        "chosen": made.chosen,
        "formats": made.formats,
        "absent": made.absent,
    }


def examine(run: Run, data: Dataset) -> dict[str, Any]:
    """Judge the trained and the exported model on images that nothing was chosen by."""
    predictor = load(run.folder / "model")
    trained = load_model(run.folder / "trained")
    split = data.splits["test"]
    before = evaluate(trained, split)
    after = predictor.evaluate(split)
    arrays = analyse(trained, predictor.split_logits(split), split)
    np.savez_compressed(run.folder / "analysis.npz", allow_pickle=False, **arrays)
    row = next(r for r in run.facts["deploy"]["formats"] if r["chosen"])
    return {
        "n": len(split),
        "trained": {"top1": before.top1, "loss": before.loss},
        "exported": {"top1": after["top1"], "loss": after["loss"], "format": predictor.format},
        "latency_ms": row["latency_ms"],
    }


# ---------------------------------------------------------------- what a person sees


def print_look(found: dict[str, Any], console: Console) -> None:
    """The data in a few lines."""
    splits = ", ".join(f"{sum(c.values()):,} {name}" for name, c in found["splits"].items())
    low, high = ("x".join(map(str, found["sizes"][end])) for end in ("min", "max"))
    sizes = low if low == high else f"{low} to {high}"
    console.print(
        f"[bold]data[/bold]     {found['total']:,} images of {len(found['labels'])} classes "
        f"({splits}), {sizes} pixels"
    )
    for name, words in (("quarantine", "set aside"), ("duplicates", "duplicates across splits")):
        if count := found[name]["count"]:
            console.print(f"         {count:,} {words}")
    for item in found["quarantine"]["items"][:5]:
        console.print(Text(f"         {item['path']}: {item['reason']}"), soft_wrap=True)
    for note in found["notes"]:
        console.print(Text(f"         note: {note}"), soft_wrap=True)


def print_choice(choice: dict[str, Any], console: Console) -> None:
    """The candidates as a table."""
    table = Table(Column("model", no_wrap=True), "params", "MACs", "latency", "raced", "")
    for row in choice["candidates"]:
        raced = "" if row["top1"] is None else f"{row['top1']:.2%}"
        table.add_row(
            row["name"],
            f"{row['params'] / 1e6:.2f} M",
            f"{row['macs'] / 1e6:.1f} M",
            f"{row['latency_ms']['median']:.2f} ms",
            raced,
            "chosen" if row["chosen"] else row["why"],
        )
    console.print(table)
    if left_out := choice.get("left_out"):
        told = f"[dim]the budget is too short to race {', '.join(left_out)}[/dim]"
        console.print(told, soft_wrap=True)


def print_training(training: dict[str, Any], console: Console) -> None:
    """What the training came to, in a line."""
    console.print(
        f"[bold]trained[/bold]  {training['model']}: {training['val_top1']:.2%} on validation "
        f"after {training['epochs']:.1f} epochs, {training['minutes']:.1f} minutes",
        soft_wrap=True,
    )


def print_formats(formats: list[dict[str, Any]], absent: dict[str, str], console: Console) -> None:
    """The formats as a table, and why others are not there."""
    table = Table("format", "size", "latency", "top-1 (val)", "same label", "")
    for row in formats:
        table.add_row(
            row["name"],
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['latency_ms']['median']:.2f} ms",
            f"{row['top1']:.2%}",
            f"{row['parity']['agreement']:.2%}",
            "chosen" if row["chosen"] else row["why"],
        )
    console.print(table)
    for row in formats:
        if line := in_integers(row):
            console.print(f"{row['name']}: {line}", soft_wrap=True)
    for name, why in absent.items():
        console.print(f"[dim]no {name}: {why}[/dim]", soft_wrap=True)


def print_test(test: dict[str, Any], out: Path, console: Console) -> None:
    """What came out, and where it lies."""
    console.print(
        f"[bold]tested[/bold]   {test['exported']['top1']:.2%} on {test['n']} held-out images "
        f"({test['exported']['format']}; as trained {test['trained']['top1']:.2%}), "
        f"{test['latency_ms']['median']:.2f} ms an image",
        soft_wrap=True,
    )
    console.print(f"[bold]report[/bold]   {out / 'report.html'}", soft_wrap=True)
    console.print(f"[bold]use it[/bold]   foveate predict {out / 'model'} IMAGE", soft_wrap=True)
