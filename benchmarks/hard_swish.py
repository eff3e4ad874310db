"""What hard-swish in place of GELU costs a trained network in INT8, and gives in speed.

    python benchmarks/hard_swish.py IMAGES [NETWORK ...] [--minutes 6]

IMAGES: CIFAR-10 as `foveate.data.open` takes it, with splits train and test; a part of train
becomes val. The test split chooses nothing. Rows found before stay.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar_networks import BATCH
from results import Sheet, facts_before, interval, show_points, show_ratio

from foveate.data import Augment, Dataset
from foveate.data import open as open_data
from foveate.deploy.candidates import Candidate
from foveate.deploy.formats import Program
from foveate.deploy.images import split_input
from foveate.deploy.programs import HARD, Programs
from foveate.deploy.quantise import CALIBRATION_IMAGES
from foveate.measure import mean_interval, paired
from foveate.train import Recipe, train
from foveate.vision import VisionModel

NETWORKS: dict[str, dict[str, Any]] = {
    "timm/convnext_atto": {"patch_size": 2},
    "timm/deit_tiny_patch16_224": dict(
        img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3
    ),
}
"""Options that suit images of 32 pixels, by name."""
BATCHES, SECONDS = (1, 64), 5.0
"""Images a call that programs are timed with, and for how long each comparison."""
SPEEDS = tuple(f"speed, batch {batch}" for batch in BATCHES)
COLUMNS = ["network", "program", "top-1", "points lost", "same class as float", *SPEEDS]
SAYS = """\
Networks are trained for {minutes:g} minutes on CIFAR-10, then run by OpenVINO: in float32, in INT8
as NNCF calibrates it, and in INT8 with hard-swish in place of GELU, fitted to what each channel
gets (`foveate.surgery.hard_swish`). All are judged on the 10,000 test images, which choose nothing:
points lost are paired with the float program, with 95% intervals over the images. Speed is that of
INT8 with hard-swish against INT8 without, in interleaved calls, with 99% intervals."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images")
    parser.add_argument("networks", nargs="*", choices=[*NETWORKS, []])
    parser.add_argument("--minutes", type=float, default=6.0)
    asked = parser.parse_args()
    data = open_data(asked.images)
    found = facts_before(__file__) or {}
    for name in asked.networks or NETWORKS:
        found[name] = rows(trained(name, data, asked.minutes), data)
        sheet = Sheet(
            __file__,
            title="Hard-swish in place of GELU, in INT8",
            command="python benchmarks/hard_swish.py IMAGES",
            says=SAYS.format(minutes=asked.minutes),
            columns=COLUMNS,
            rows=[cells(of, *row) for of, made in found.items() for row in made.items()],
            facts=found,
        )
        sheet.write()
        print("\n".join(" | ".join(row) for row in sheet.rows), flush=True)


def trained(name: str, data: Dataset, minutes: float) -> VisionModel:
    """A network that has learned from the training images for so long."""
    torch.manual_seed(0)
    model = VisionModel.create(name, data.labels, 32, **NETWORKS[name])
    recipe = Recipe(
        minutes=minutes,
        batch_size=BATCH,
        learning_rate=2e-3,
        augment=Augment(shift=4, flip=True),
        evaluate_every=1e9,
        checkpoint_every=1e9,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(model, data, recipe, Path(folder), progress=False)
    return model.eval()


def rows(model: VisionModel, data: Dataset) -> dict[str, dict[str, Any]]:
    """All figures of a network's programs, by the programs' names."""
    test = data.splits["test"]
    parts = np.array_split(np.arange(len(test)), len(test) // 100)
    images = [split_input(test, part, model.preprocess) for part in parts]
    seen = np.linspace(0, len(data.splits["train"]) - 1, CALIBRATION_IMAGES).astype(int)
    calibration = split_input(data.splits["train"], seen, model.preprocess)
    programs = Programs(Program(model).eval(), calibration, calibration, lambda word: None)
    lean = programs.graphs[0]
    if not programs.has_hard:
        raise RuntimeError(f"there is no hard graph: {programs.coverage}")
    runs = {
        "float32": Candidate(lean, "openvino", "float32"),
        "INT8": Candidate(lean, "openvino", "int8"),
        "INT8, hard-swish": Candidate(HARD, "openvino", "int8"),
    }
    classes, made = {}, {}
    for name, row in runs.items():
        run = programs.start(row, 1)
        classes[name] = np.concatenate([run(part).argmax(1) for part in images])
        right, first = ((classes[of] == test.targets).astype(float) for of in (name, "float32"))
        made[name] = {
            "top1": mean_interval(100 * right),
            "points_lost": mean_interval(100 * (first - right)),
            "agreement": 100 * float((classes[name] == classes["float32"]).mean()),
        }
    made["INT8, hard-swish"]["speed"] = {
        str(batch): speed(programs, runs["INT8"], runs["INT8, hard-swish"], batch)
        for batch in BATCHES
    }
    return made


def speed(programs: Programs, before: Candidate, after: Candidate, batch: int) -> tuple[float, ...]:
    """Time of a program over that of another."""
    images = np.random.default_rng(0).random((batch, 3, 32, 32), dtype=np.float32)
    one, two = (partial(programs.start(row, batch), images) for row in (before, after))
    return interval(paired(one, two, seconds=SECONDS, settled=True))


def cells(network: str, program: str, row: dict[str, Any]) -> list[str]:
    """A line of the table; the float program has nothing to be compared with."""
    lost, agreement = show_points(row["points_lost"]), f"{row['agreement']:.1f}%"
    compared = ["", ""] if program == "float32" else [lost, agreement]
    speeds = [show_ratio(ratio) for ratio in row.get("speed", {}).values()] or [""] * len(SPEEDS)
    return [network, program, f"{row['top1'][0]:.2f}%", *compared, *speeds]


if __name__ == "__main__":
    main()
