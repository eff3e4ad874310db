"""What compressing two trained networks costs in accuracy, and gives in size and speed.

    python benchmarks/compressed.py WEIGHTS IMAGES [NETWORK ...] [--minutes 5] [--rows PATTERN]

WEIGHTS (the folder) and IMAGES: as cifar_networks.py says. Rows found before stay.
"""

import argparse
import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar_networks import BLOCKS, calibration, network
from results import Interval, Sheet, facts_before, interval, show_points, show_ratio
from torch import Tensor

import foveate
from foveate.data import Augment, Dataset
from foveate.data import open as open_data
from foveate.deploy.formats import save_openvino, to_openvino, write_onnx
from foveate.deploy.images import split_input
from foveate.deploy.overflow import fitting_bits
from foveate.deploy.runtimes import OpenVinoRuntime
from foveate.measure import count, mean_interval, paired
from foveate.surgery.channels.shrink import Shrink
from foveate.surgery.edit import Edit
from foveate.surgery.gpusq_vit import MaskTwoOfFour
from foveate.surgery.masks import sparsity
from foveate.surgery.quant_whitepaper_qualcomm.bias import CorrectBias
from foveate.surgery.quant_whitepaper_qualcomm.rounding import AdaRound
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store
from foveate.train import Recipe, train
from foveate.train.gpusq_vit import DistilFromDense
from foveate.vision import VisionModel

BATCHES, SECONDS = (1, 64), 5.0
"""Images a call that programs are timed with, and for how long each comparison."""
INT8 = Simulate(weight_bits=fitting_bits())
SUMS_IN_FLOAT = replace(INT8, every_output=False)
DENSE = "tuned alone"
COLUMNS = ("network", "way", "top-1", "points lost", "mark", "below tuned alone", "size", "MACs")
SPEEDS = tuple(f"speed, batch {batch}" for batch in BATCHES)
SAYS = f"""\
Published networks of CIFAR-10 are edited, tuned where the row says so with the published one for a
teacher, exported, and judged as the program that OpenVINO runs: on the 10,000 test images, which
choose nothing, paired with the program of the float original, with 95% intervals over the images
(a mark is met where the whole interval stays within it), and in interleaved calls, with 99%
intervals of the ratio of times. INT8 has weights of 7 bits where the processor has no VNNI, as sums
of products overflow there; *sums in float*: what shortcuts add up is not rounded before. Size is
the program's. These images were compressed once more than those that the networks learned from, and
any tuning on them helps: so the original, *{DENSE}* as long, is a row too, and tuned rows say how
far below it they are."""


@dataclass(frozen=True)
class Way:
    """A way to compress.

    Attributes:
        edits: before tuning.
        tuned: whether there is any.
        then: edits after it.
        mark: points of accuracy that it may cost, or None where there is no mark.
    """

    edits: Sequence[Edit] = ()
    tuned: bool = False
    then: Sequence[Edit] = ()
    mark: float | None = None


WAYS = {
    "INT8": Way([INT8], mark=0.3),
    "INT8, sums in float, biases corrected": Way([SUMS_IN_FLOAT, CorrectBias()], mark=0.3),
    "4-bit weights, AdaRound": Way(
        [Simulate(weight_bits=4, activation_bits=None), AdaRound(), Store()], mark=1.5
    ),
    DENSE: Way(tuned=True),
    "25% of MACs removed": Way([Shrink(macs=0.75, multiple=8)], tuned=True),
    "50% of MACs removed": Way([Shrink(macs=0.5, multiple=8)], tuned=True, mark=1.5),
    "70% of MACs removed": Way([Shrink(macs=0.3, multiple=8)], tuned=True),
    "2:4": Way([MaskTwoOfFour()], tuned=True, mark=1.0),
    "50% of MACs removed, INT8": Way([Shrink(macs=0.5, multiple=8)], tuned=True, then=[INT8]),
    "2:4, INT8": Way([MaskTwoOfFour()], tuned=True, then=[INT8]),
}


def main() -> None:
    asked = arguments()
    data = open_data(asked.images)
    found = facts_before(__file__) or {}
    sheet = Sheet(
        __file__,
        title="Compression of trained networks",
        command="python benchmarks/compressed.py WEIGHTS IMAGES",
        says=f"{SAYS} Tuning: {asked.minutes:g} minutes each on this machine.",
        columns=[*COLUMNS, *SPEEDS],
        facts=found,
    )
    for name in asked.networks or BLOCKS:
        bench = Bench(network(name, Path(asked.weights), data.labels), data, asked.minutes)
        rows = found.setdefault(name, {})
        rows["original"] = bench.original.figures()
        for row, way in WAYS.items():
            if fnmatch(row, asked.rows):
                rows[row] = bench.row(way)
                print(" | ".join(cells(name, row, rows[row])), flush=True)
                sheet.rows = [
                    cells(of, known, figures[known])
                    for of, figures in found.items()
                    for known in ("original", *WAYS)
                    if known in figures
                ]
                sheet.write()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights")
    parser.add_argument("images")
    parser.add_argument("networks", nargs="*", choices=[*BLOCKS, []])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rows", default="*", help="pattern of their names")
    return parser.parse_args()


def cells(name: str, way: str, row: dict[str, Any]) -> list[str]:
    """A line of the table; an original has nothing to be compared with."""
    lost, below = (
        show_points(row[key]) if key in row else "" for key in ("points_lost", "points_below_tuned")
    )
    mark = f"{row['mark']:g}: {row['verdict']}" if row.get("mark") else ""
    size, macs = f"{row['bytes']['program'] / 1e3:.0f} kB", f"{row['macs'] / 1e6:.1f} M"
    speeds = [show_ratio(ratio) for ratio in row.get("speed", {}).values()] or [""] * len(SPEEDS)
    return [name, way, f"{row['top1'][0]:.2f}%", lost, mark, below, size, macs, *speeds]


class Bench:
    """One network, what it may look at, and what it is judged by.

    Args:
        model: as it was published.
        data: to calibrate and tune on, and the test images.
        minutes: of tuning at most.
    """

    def __init__(self, model: VisionModel, data: Dataset, minutes: float) -> None:
        self.model, self.data, self.minutes = model, data, minutes
        self.looked_at = calibration(data)
        self.original = Judged(model, data)
        self._tuned: dict[str, tuple[VisionModel, float]] = {}

    def row(self, way: Way) -> dict[str, Any]:
        """All figures of a way."""
        began = time.perf_counter()
        model = edited(self.model, way.edits, self.looked_at)
        spent = {"editing": time.perf_counter() - began}
        if way.tuned:
            model, spent["tuning"] = self.tuned(model, repr(way.edits))
        model = edited(model, way.then, self.looked_at)
        judged = Judged(model, self.data)
        lost = mean_interval(100 * (self.original.right - judged.right))
        row = {**judged.figures(), "points_lost": lost, "mark": way.mark, "seconds": spent}
        row["verdict"] = verdict(lost, way.mark)
        row["speed"] = {
            str(batch): speed(self.original.run, judged.run, batch) for batch in BATCHES
        }
        if way.tuned:
            dense, _ = self.tuned(self.model, repr(()))
            right = Judged(dense, self.data).right
            row["points_below_tuned"] = mean_interval(100 * (right - judged.right))
        return row

    def tuned(self, model: VisionModel, how: str) -> tuple[VisionModel, float]:
        """A model tuned with the original for a teacher, and the seconds that took.

        Args:
            how: what was done to it before; each is tuned once.
        """
        if how not in self._tuned:
            recipe = Recipe(
                minutes=self.minutes,
                optimizer="sgd",
                learning_rate=0.05,
                weight_decay=5e-4,
                warmup=0.05,
                label_smoothing=0.0,
                augment=Augment(shift=4),
                precision="auto",
            )
            teacher = DistilFromDense(self.model, features=0.0)
            own = copy.deepcopy(model)
            began = time.perf_counter()
            with tempfile.TemporaryDirectory() as folder:
                train(own, self.data, recipe, Path(folder), ingredients=[teacher], progress=False)
            self._tuned[how] = own, time.perf_counter() - began
        return self._tuned[how]


class Judged:
    """A model as the program that OpenVINO runs.

    Attributes:
        run: the program.
        right: for each test image whether it is right, 0.0 or 1.0.
    """

    def __init__(self, model: VisionModel, data: Dataset) -> None:
        self.model = model
        with tempfile.TemporaryDirectory() as folder:
            onnx, path = Path(folder, "model.onnx"), Path(folder, "model.xml")
            write_onnx(model, onnx)
            save_openvino(to_openvino(onnx), path)
            foveate.save(model, folder)
            program = sum(path.with_suffix(end).stat().st_size for end in (".xml", ".bin"))
            saved = Path(folder, "model.safetensors").stat().st_size
            self.run = OpenVinoRuntime(path)
        self.bytes = {"program": program, "saved": saved}
        test = data.splits["test"]
        parts = np.array_split(np.arange(len(test)), len(test) // 100)
        logits = [self.run(split_input(test, part, model.preprocess)) for part in parts]
        self.right = (np.concatenate(logits).argmax(1) == test.targets).astype(np.float64)

    def figures(self) -> dict[str, Any]:
        """JSON-ready."""
        macs = count(self.model, torch.rand(1, 3, 32, 32)).macs
        zeros = sparsity(self.model).share
        top1 = mean_interval(100 * self.right)
        return {"top1": top1, "bytes": self.bytes, "macs": macs, "zeros": zeros}


def edited(model: VisionModel, edits: Sequence[Edit], images: list[Tensor]) -> VisionModel:
    """A copy of a model, after edits."""
    found: Any = model
    for edit in edits:
        found, _ = edit.apply(found, images)
    return found


def verdict(lost: tuple[float, float, float], mark: float | None) -> str:
    """Against the mark: met, missed, or open where the interval holds it."""
    if mark is None:
        return ""
    return "met" if lost[2] <= mark else "missed" if lost[1] > mark else "open"


def speed(before: Any, after: Any, batch: int) -> Interval:
    """Time of a program over that of another."""
    images = np.random.default_rng(0).random((batch, 3, 32, 32), dtype=np.float32)
    return interval(paired(partial(before, images), partial(after, images), seconds=SECONDS))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
