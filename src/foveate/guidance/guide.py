"""Guidance as a story: sensitivities, a search, the front, the one that is chosen, and why."""

import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.compress import JUDGES, evenly, seen_by_edits
from foveate.data import Augment, Dataset, Split
from foveate.deploy.export import SEARCH_BYTES
from foveate.deploy.images import split_input
from foveate.deploy.overflow import fitting_bits
from foveate.deploy.started import Runtime
from foveate.errors import FoveateError, require
from foveate.guidance.bench import Bench, Stopwatch
from foveate.guidance.search import Search, Trial, chosen
from foveate.guidance.sensitivity import (
    Probe,
    Sensitivity,
    Widths,
    attempted,
    of_integers,
    of_merging,
    of_storage,
)
from foveate.guidance.space import Space
from foveate.guidance.wish import Budget, Wish
from foveate.guidance.words import explain
from foveate.measure import machine
from foveate.ops.merge import is_mergeable, merge
from foveate.surgery.channels.remove import Remove
from foveate.surgery.lineage import lineage
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.train import Recipe, train
from foveate.train.gpusq_vit import DistilFromDense
from foveate.vision import VisionModel

BATCH = 64
"""Images in a batch that edits look at; of each they sample as many values."""
LOOKING = 0.3
"""Share of the budget after which no more sensitivities are measured."""


@dataclass(frozen=True)
class Guided:
    """What guidance found.

    Attributes:
        model: with the edits of the chosen composition, or of the nearest.
        met: whether it meets the wish.
        words: sentences that explain the choice.
        facts: everything that was measured, JSON-ready.
    """

    model: VisionModel
    met: bool
    words: list[str]
    facts: dict[str, Any]


def guide(
    model: VisionModel,
    data: Dataset,
    wish: Wish,
    *,
    runtime: Runtime | None = None,
    stopwatch: Stopwatch | None = None,
    now: Callable[[], float] = time.monotonic,
    told: Callable[[str], None] = lambda text: None,
) -> Guided:
    """Find the edits that bring a trained model within a latency and an accuracy guard.

    Args:
        model: stays as it is.
        data: edits look at its training images; its validation split judges, or `train` where
            that is empty; the `test` split, if any, says at last what the chosen one lost.
        wish: what is wanted.
        runtime: where programs are judged and timed; by default OpenVINO, or PyTorch, eager,
            where that cannot be.
        stopwatch: times programs, as `Bench` says. With measured times given, and a budget that
            is not spent, the seed decides everything.
        now: tells the time that the budget is spent by.
        told: called with a word on what is under way.

    Raises: FoveateError if Optuna is not installed, there are no images to judge by, or nothing
        of the model can be edited.
    """
    require("optuna", "search")
    budget = Budget(wish.budget, now)
    model = copy.deepcopy(model).cpu().eval()
    split = data.splits["val"] if len(data.splits["val"]) else data.splits["train"]
    images, targets = _judges(model, split, wish)
    told("measuring the model as it is")
    bench = Bench(
        model, images, targets, runtime=runtime, stopwatch=stopwatch, seconds=wish.seconds
    )
    space, sensitivities, refused = _looked_at(model, data, wish, bench, images, budget, told)
    search = Search(space, bench, wish, budget, told)
    search.run()
    finalists = search.finalists
    best, met = chosen([*finalists, search.original], wish)
    program = search.programs[best.choice]
    held_out = None
    if len(data.splits["test"]) and best.choice != search.original.choice:
        told("judging on the test split")
        others, classes = _judges(model, data.splits["test"], wish)
        lost = bench.lost_on(program, others, classes)
        held_out = {"images": len(others), **asdict(lost)}
    around = space.neighbours(best.choice)
    rows = [
        {
            **_row(trial, search),
            "front": trial in finalists,
            "chosen": trial == best,
            "neighbour": trial.choice in around,
        }
        for trial in search.trials.values()
    ]
    facts = {
        "machine": machine(),
        "asked": asdict(wish),
        "runtime": bench.runtime,
        "no_openvino": bench.no_openvino,
        "judged": {"split": "val" if split is data.splits["val"] else "train", "n": len(images)},
        "seconds": budget.spent,
        "cut_short": search.cut_short,
        "sensitivities": [_flat(row) for row in sensitivities],
        "refused": refused,
        "trials": rows,
        "unmeasured_neighbours": sum(c not in search.trials for c in around),
        "chosen": best.name,
        "met": met,
        "held_out": held_out,
        "lineage": lineage(program.model),
    }
    words = explain(facts)
    return Guided(program.model, met, words, {**facts, "words": words})


# ---------------------------------------------------------------- what is looked at


def _looked_at(
    model: VisionModel,
    data: Dataset,
    wish: Wish,
    bench: Bench,
    images: np.ndarray,
    budget: Budget,
    told: Callable[[str], None],
) -> tuple[Space, list[Sensitivity], list[dict[str, str]]]:
    """What may be tried, what each edit costs alone, and which cannot be made and why.

    Raises: FoveateError if none can.
    """
    batches = seen_by_edits(model, data, wish.calibration, BATCH)
    some = evenly(len(images), wish.probes)
    targets = bench.targets[some] if wish.by == "accuracy" else None
    pictures = torch.from_numpy(images[some])
    probe = Probe(model, pictures, targets)
    go_on = partial(budget.has, LOOKING)
    told("what channels cost")
    found: list[Widths] = []

    def widths() -> list[Sensitivity]:
        Remove().demand_weights(model)
        found.append(Widths(model, batches[0], probe, partial(budget.has, LOOKING / 2)))
        if not found[0].rows:
            raise FoveateError("no channel of it can go")
        return found[0].rows

    simulate = Simulate(weight_bits=fitting_bits(), every_output=bench.runtime == "ONNX Runtime")
    # numbers are rounded in merged layers, so these are the ones whose sensitivity counts
    whole = merge(copy.deepcopy(model)) if is_mergeable(model) else model
    rows: dict[str, list[Sensitivity]] = {}
    refused = []
    steps: dict[str, Callable[[], list[Sensitivity]]] = {
        "Remove": widths,
        "Simulate": partial(of_integers, whole, simulate, batches, probe, go_on),
        "Store": partial(of_storage, whole, probe, go_on),
    }
    if whole is not model:
        steps["Fold"] = partial(of_merging, model, probe)
    for name, find in steps.items():
        told(f"what {name} costs")
        rows[name], why = attempted(find)
        if why:
            refused.append({"edit": name, "why": why})
    if not any(rows.values()):
        raise FoveateError(
            "nothing of this model can be edited: "
            + "; ".join(f"{row['edit']}: {row['why']}" for row in refused)
        )
    tune = partial(_tuned, data=data, teacher=model, wish=wish) if wish.tune else None
    space = Space(
        model,
        bench.original_macs,
        batches,
        found[0] if found else None,
        simulate,
        rows["Simulate"],
        rows["Store"],
        tune,
    )
    return space, [row for found in rows.values() for row in found], refused


def _judges(model: VisionModel, split: Split, wish: Wish) -> tuple[np.ndarray, np.ndarray | None]:
    """Images of a split, and their targets if these are to judge. Raises: FoveateError."""
    if not len(split):
        raise FoveateError("there are no images to judge by: give --data with images")
    most = min(JUDGES, SEARCH_BYTES // (12 * model.preprocess.size**2))
    indices = evenly(len(split), most)
    images = split_input(split, indices, model.preprocess)
    return images, split.targets[indices] if wish.by == "accuracy" else None


def _tuned(model: VisionModel, *, data: Dataset, teacher: VisionModel, wish: Wish) -> VisionModel:
    """A copy of a model, trained for a while to answer as another one does."""
    own = copy.deepcopy(model)
    side = model.preprocess.size
    flip = False if data.source == "digits" else "alternate"
    recipe = Recipe(
        epochs=wish.tune,
        optimizer="sgd",
        learning_rate=0.02,
        weight_decay=5e-4,
        label_smoothing=0.0,
        augment=Augment(shift=max(1, side // 16), flip=flip),
        evaluate_every=wish.tune,
        seed=wish.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        teach = DistilFromDense(teacher, soft=2.0, features=0.0)
        train(own, data, recipe, Path(folder), ingredients=(teach,), progress=False)
    return own.eval()


# ---------------------------------------------------------------- as JSON


def _flat(row: Sensitivity) -> dict[str, Any]:
    known = row.lost is not None
    return {**asdict(row), "divergence": row.divergence if known else None}


def _row(trial: Trial, search: Search) -> dict[str, Any]:
    figures = asdict(trial.figures) if trial.figures else None
    if figures:
        figures["latency_ms"] = figures.pop("milliseconds")
    return {
        "name": trial.name,
        "fields": asdict(trial.choice),
        "edits": list(trial.edits),
        "left_in_float": list(search.space.left_as_they_are(trial.choice)),
        "figures": figures,
        "why": trial.why,
    }
