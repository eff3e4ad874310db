"""Train the smallest size of every family on real images for some minutes: does it learn?

    python benchmarks/families_learn.py SOURCE [SECONDS]

SOURCE is what `foveate fit` takes, of images of about 32 pixels, such as CIFAR-10. Each family
has its own recipe and the same time; give 180 seconds or more on two cores, where the dearer
ones make but one step a second. Results are written beside this file.
"""

import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from foveate.backbones import family_recipe, smallest_sizes
from foveate.data import Augment
from foveate.data import open as open_data
from foveate.measure import machine
from foveate.train import Recipe, evaluate, train
from foveate.vision import VisionModel

RESULTS = Path(__file__).with_suffix(".json")
JUDGED = 2000


def main() -> None:
    source, seconds = sys.argv[1], float(sys.argv[2]) if sys.argv[2:] else 180.0
    data = open_data(source)
    test = data.splits["test"]
    chosen = np.linspace(0, len(test) - 1, min(JUDGED, len(test))).astype(int)
    judged = test.subset(np.unique(chosen))
    found = {
        "machine": machine(),
        "data": Path(source).name,
        "seconds": seconds,
        "images": len(judged),
        "chance": math.log(len(data.labels)),
        "families": {},
    }
    for name in smallest_sizes():
        torch.manual_seed(0)
        model = VisionModel.create(name, data.labels, 32)
        recipe = Recipe(
            minutes=seconds / 60,
            augment=Augment(shift=4, flip=True),
            evaluate_every=1e9,
            checkpoint_every=1e9,
            **family_recipe(name),
        )
        with tempfile.TemporaryDirectory() as folder:
            outcome = train(model, data, recipe, Path(folder), progress=False)
        result = evaluate(model, judged)
        found["families"][name] = {
            "top1": result.top1,
            "loss": result.loss,
            "epochs": outcome.epochs,
        }
        print(f"{name:<24} {result.top1:.1%}  loss {result.loss:.2f}", flush=True)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
