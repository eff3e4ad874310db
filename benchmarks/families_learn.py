"""Train the smallest size of every family on real images for some minutes: does it learn?

    python benchmarks/families_learn.py SOURCE [--seconds 150] [NAME ...]

SOURCE is what `foveate fit` takes, of images of about 32 pixels, such as CIFAR-10. Each family
has its own recipe at batches of 64, and the same time; by default all families are trained. Results
are kept beside this file, and replaced name by name.
"""

import argparse
import inspect
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.backbones import family_recipe, sizes, smallest_sizes
from foveate.data import Augment
from foveate.data import open as open_data
from foveate.measure import machine
from foveate.train import Recipe, evaluate, train
from foveate.vision import VisionModel

RESULTS = Path(__file__).with_suffix(".json")
JUDGED = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seconds", type=float, default=150.0)
    asked = parser.parse_args()
    data = open_data(asked.source)
    test = data.splits["test"]
    chosen = np.linspace(0, len(test) - 1, min(JUDGED, len(test))).astype(int)
    judged = test.subset(np.unique(chosen))
    for name in asked.names or smallest_sizes():
        torch.manual_seed(0)
        model = VisionModel.create(name, data.labels, 32, **coarser(name))
        recipe = Recipe(
            minutes=asked.seconds / 60,
            augment=Augment(shift=4, flip=True),
            evaluate_every=1e9,
            checkpoint_every=1e9,
            **halved(family_recipe(name)),
        )
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(model, data, recipe, Path(folder), progress=False)
        result = evaluate(model, judged)
        keep(
            {
                "machine": machine(),
                "data": Path(asked.source).name,
                "images": len(judged),
                "chance": math.log(len(data.labels)),
            },
            name,
            {
                "top1": result.top1,
                "loss": result.loss,
                "epochs": outcome.epochs,
                "seconds": asked.seconds,
                "options": coarser(name),
                "threads": torch.get_num_threads(),
            },
        )
        print(f"{name:<24} {result.top1:.1%}  loss {result.loss:.2f}", flush=True)


def halved(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe in batches of 64, its learning rate in proportion: more steps in the time."""
    share = 64 / recipe["batch_size"]
    return recipe | {"batch_size": 64, "learning_rate": share * recipe["learning_rate"]}


def coarser(name: str) -> dict[str, int]:
    """A stem of stride 2 where the family's smallest size looks at single pixels: a quarter of
    the work, so that minutes on a few cores show something."""
    family, size = sizes()[name]
    takes_patch = "patch" in inspect.signature(family).parameters
    return {"patch": 2} if takes_patch and size.config.get("patch") == 1 else {}


def keep(about: dict[str, object], name: str, found: dict[str, float]) -> None:
    """Write a family's result among the others."""
    known = json.loads(RESULTS.read_text("utf-8"))["families"] if RESULTS.exists() else {}
    families = dict(sorted((known | {name: found}).items()))
    RESULTS.write_text(json.dumps(about | {"families": families}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
