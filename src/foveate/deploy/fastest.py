"""From any torch network to the program that runs fastest on this machine.

First the graph becomes lean: norms, branches and identities merge, maps stay
maps. Then each runtime and precision that is at hand computes it, the accuracy
of each is looked at, and those that keep the guard are timed in turns.
"""

import json
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.deploy import remembered
from foveate.deploy.formats import to_openvino, write_program
from foveate.deploy.parity import parity
from foveate.deploy.quantise import has_attention, quantise, run, with_fallback
from foveate.deploy.runtimes import Logits, OnnxRuntime, OpenVinoRuntime, computes_bfloat16
from foveate.errors import FoveateError, require
from foveate.measure import machine, side_by_side
from foveate.surgery.lean import largest_error, lean

CALIBRATION_IMAGES = 300
JUDGE_BATCH = 16
PROVEN = 1e-3
"""Largest error of a lean graph that counts as rounding, against the largest output."""

Score = Callable[[np.ndarray], float]
"""Accuracy in points of 100 of logits (N, K) of the judged images, in order."""


@dataclass(frozen=True)
class Candidate:
    """One way of running a network, and how it did.

    Attributes:
        graph: `maps` (merged, channels first), `merged`, or `plain` as it came.
        runtime: `openvino` or `onnxruntime`.
        precision: `float32`, `bfloat16`, `int8`, or `int8-bfloat16` where what is
            not quantised computes in bfloat16.
        streams: parts of a batch that are computed at the same time.
        gentle: what attention needs stays in float.
        floats: layers of an INT8 program that compute in float.
        score: points of accuracy.
        error: largest error of the logits, against the largest logit.
        milliseconds: a batch; its bounds are `low` and `high`.
        why: why it may not be chosen, or "".
    """

    graph: str
    runtime: str
    precision: str
    streams: int = 1
    gentle: bool = False
    floats: tuple[str, ...] = ()
    score: float = 0.0
    error: float = 0.0
    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""

    @property
    def name(self) -> str:
        streams = f", {self.streams} streams" if self.streams > 1 else ""
        floats = f", {len(self.floats)} layers in float" if self.floats else ""
        return f"{self.runtime} {self.precision}{streams}{floats}, {self.graph} graph"

    @property
    def program(self) -> str:
        """Name of the file that it runs."""
        return f"{self.graph}-int8.xml" if "int8" in self.precision else f"{self.graph}.onnx"


@dataclass(frozen=True)
class Deployed:
    """A network as it runs fastest here.

    Attributes:
        folder: with the chosen program alone; gone with this object, unless `save`d.
        chosen: how it runs.
        table: every candidate, the fastest first.
        coverage: what was done to the graph: (part, change) pairs.
        batch: images a call that it is made for; others are possible.
    """

    folder: Path
    chosen: Candidate
    table: list[Candidate]
    coverage: list[tuple[str, str]]
    batch: int
    runtime: Logits

    def __call__(self, images: np.ndarray | Tensor) -> np.ndarray:
        """Outputs float32 (B, ...) of inputs (B, C, H, W), as the network takes them."""
        if isinstance(images, Tensor):
            images = images.detach().cpu().numpy()
        return self.runtime(images)

    def save(self, folder: str | Path) -> None:
        """Copy the program and what says how to run it. Raises: FoveateError."""
        try:
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        except OSError as error:
            raise FoveateError(
                f"cannot write the program to {folder} ({error}): make room or give another folder"
            ) from error


def load_fastest(folder: str | Path) -> Deployed:
    """What `Deployed.save` wrote. Raises: FoveateError if it is damaged or cannot be run here."""
    folder = Path(folder)
    try:
        facts = json.loads((folder / "fastest.json").read_text("utf-8"))
        table = [_candidate(row) for row in facts["table"]]
        chosen = _candidate(facts["chosen"])
        coverage = [(part, change) for part, change in facts["coverage"]]
        runtime = _start(chosen, folder, facts["batch"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0]
        raise FoveateError(
            f"{folder} holds no program that runs here ({first}): deploy the model again"
        ) from error
    return Deployed(folder, chosen, table, coverage, facts["batch"], runtime)


def fastest(
    model: nn.Module,
    images: Tensor | np.ndarray,
    *,
    targets: np.ndarray | None = None,
    score: Score | None = None,
    calibration: Tensor | np.ndarray | None = None,
    batch: int = 1,
    guard: float = 1.0,
    seconds: float = 1.0,
    again: bool = False,
    told: Callable[[str], None] = lambda text: None,
) -> Deployed:
    """Find the fastest way to run a trained network on this machine.

    Args:
        model: any torch network that maps one batch of images to one tensor.
        images: to judge on, (N, C, H, W), as the network takes them; N at least 2.
        targets: their classes (N,); without them and `score`, accuracy is the share
            of images that get the class that the float network gives.
        score: another judge of logits; what it leads to is not remembered.
        calibration: for INT8; by default the first of `images`.
        batch: images a call.
        guard: points of accuracy that may be lost.
        seconds: of timing for each candidate.
        again: measure again what was measured on this machine in the last 30 days.
        told: called with a word on what is under way.

    Raises: FoveateError if the images do not fit, or a library is missing.
    """
    images, calibration = _checked(images, calibration, batch, guard)
    model = model.eval().cpu()
    made = _Making(model, images, calibration, Path(tempfile.mkdtemp(prefix="foveate-")), told)
    classes = None if targets is None else [int(target) for target in targets]
    pixels = [float(images.sum()), float(calibration.sum())]
    asked = {"batch": batch, "guard": guard, "classes": classes, "pixels": pixels}
    question = remembered.key(model, **asked)
    known = None if again or score else remembered.recall(question)
    if known is None:
        judge = score or (None if targets is None else partial(_hits, targets))
        table = _measured(made, judge, batch, guard, seconds)
        known = {"table": [asdict(row) for row in table], "machine": machine()}
        if score is None:
            remembered.remember(question, known)
    table = [_candidate(row) for row in known["table"]]
    chosen = table[0]
    made.program(chosen)
    made.keep(chosen)
    facts = {**known, "chosen": asdict(chosen), "coverage": made.coverage, "batch": batch}
    (made.folder / "fastest.json").write_text(json.dumps(facts, indent=1), "utf-8")
    runtime = _start(chosen, made.folder, batch)
    deployed = Deployed(made.folder, chosen, table, made.coverage, batch, runtime)
    weakref.finalize(deployed, shutil.rmtree, made.folder, ignore_errors=True)
    return deployed


# ---------------------------------------------------------------- programs


class _Making:
    """The programs of candidates, each written when it is first asked for."""

    def __init__(
        self,
        model: nn.Module,
        images: np.ndarray,
        calibration: np.ndarray,
        folder: Path,
        told: Callable[[str], None],
    ) -> None:
        self.model = model
        self.images = images
        self.calibration = calibration
        self.folder = folder
        self.told = told
        self.coverage: list[tuple[str, str]] = []
        self._floats: dict[str, Any] = {}

    def graphs(self) -> list[str]:
        """Which graphs of the network there are: the leanest that is proven, and the plain one."""
        lean_one = self._lean("maps", rewrite_maps=True) or self._lean("merged", rewrite_maps=False)
        self._write("plain", self.model)
        return [lean_one, "plain"] if lean_one else ["plain"]

    def _lean(self, name: str, rewrite_maps: bool) -> str | None:
        """Write one lean graph; its name if it computes what the network does."""
        pair = torch.from_numpy(self.images[:2])
        try:
            graph, changes = lean(self.model, pair, rewrite_maps=rewrite_maps)
        except FoveateError as error:
            self.coverage = [("the network", str(error))]
            return None
        error = largest_error(self.model, graph, pair)
        if error > PROVEN:
            self.coverage = [("the network", f"left as it came: {name} is {error:.1e} off")]
            return None
        self._write(name, graph)
        self.coverage = [(line.name, line.why) for line in changes]
        return name

    def _write(self, name: str, graph: nn.Module) -> None:
        self.told(f"writing the {name} graph")
        write_program(graph, torch.from_numpy(self.images[:2]), self.folder / f"{name}.onnx")

    def program(self, candidate: Candidate) -> None:
        """Write the file of a candidate, if it is not there."""
        if not (self.folder / f"{candidate.graph}.onnx").exists():
            self.graphs()
        if "int8" in candidate.precision and not (self.folder / candidate.program).exists():
            self.save(candidate.graph, self.int8(candidate))

    def float32(self, graph: str) -> Any:
        if graph not in self._floats:
            self._floats[graph] = to_openvino(self.folder / f"{graph}.onnx")
        return self._floats[graph]

    def int8(self, row: Candidate) -> Any:
        """The INT8 model of a candidate."""
        self.told(f"quantising the {row.graph} graph")
        model = self.float32(row.graph)
        return quantise(model, self.calibration, is_transformer=row.gentle, floats=row.floats)

    def save(self, graph: str, quantised: Any) -> None:
        openvino = require("openvino", "deploy")
        path = self.folder / f"{graph}-int8.xml"
        openvino.save_model(quantised, path, compress_to_fp16=False)

    def keep(self, chosen: Candidate) -> None:
        """Take away every file but the chosen program's."""
        stem = Path(chosen.program).stem
        for file in self.folder.iterdir():
            if file.stem != stem:
                file.unlink()


def _start(candidate: Candidate, folder: Path, batch: int) -> Logits:
    path = folder / candidate.program
    if candidate.runtime == "onnxruntime":
        return OnnxRuntime(path)
    precision = "bf16" if "bfloat16" in candidate.precision else "f32"
    return OpenVinoRuntime(path, precision, batch=batch, streams=candidate.streams)


# ---------------------------------------------------------------- measuring


def _measured(
    made: _Making, score: Score | None, batch: int, guard: float, seconds: float
) -> list[Candidate]:
    """Every candidate with its figures: those that keep the guard first, the fastest first."""
    graphs = made.graphs()
    expected = run(made.float32(graphs[0]), made.images)
    score = score or partial(_hits, expected.argmax(1))
    least = score(expected) - guard - 1e-9
    rows = []
    for graph in graphs:
        rows += _judged(made, graph, expected, score, least)
    made.told("timing")
    able = [row for row in rows if not row.why]
    once = _timed(able, made, batch, seconds / 4)
    leaders = sorted(once, key=lambda row: row.milliseconds or 0)[:3]
    split = [replace(row, streams=2) for row in leaders if row.runtime == "openvino"]
    finalists = leaders + (split if batch % 2 == 0 else [])
    final = _timed(finalists, made, batch, seconds)
    rest = [row for row in once if row not in leaders]
    final.sort(key=lambda row: row.milliseconds or 0)
    rest.sort(key=lambda row: row.milliseconds or 0)
    return final + rest + [row for row in rows if row.why]


def _judged(
    made: _Making, graph: str, expected: np.ndarray, score: Score, least: float
) -> list[Candidate]:
    """The candidates of one graph, with accuracy; INT8 with as many float layers as it takes."""
    rows = [Candidate(graph, "onnxruntime", "float32"), Candidate(graph, "openvino", "float32")]
    if computes_bfloat16():
        rows.append(Candidate(graph, "openvino", "bfloat16"))

    def keeps(model: Any) -> bool:
        return score(run(model, made.images)) >= least

    row = Candidate(graph, "openvino", "int8")
    quantised = made.int8(row)
    if not keeps(quantised) and has_attention(made.float32(graph)):
        row = replace(row, gentle=True)
        quantised = made.int8(row)
    if not keeps(quantised):
        made.told("returning layers to float")

        def again(floats: list[str]) -> Any:
            return made.int8(replace(row, floats=tuple(floats)))

        found = with_fallback(quantised, again, made.images, expected, keeps)
        if found is not None:
            quantised, row = found[0], replace(row, floats=tuple(found[1]))
    made.save(graph, quantised)
    rows.append(row)
    if computes_bfloat16():
        rows.append(replace(row, precision="int8-bfloat16"))
    return [_scored(row, made, expected, score, least) for row in rows]


def _scored(
    row: Candidate, made: _Making, expected: np.ndarray, score: Score, least: float
) -> Candidate:
    runtime = _start(row, made.folder, JUDGE_BATCH)
    parts = range(0, len(made.images), JUDGE_BATCH)
    logits = np.concatenate([runtime(made.images[i : i + JUDGE_BATCH]) for i in parts])
    points = score(logits)
    error = parity(expected, logits).max_error / max(float(np.abs(expected).max()), 1e-12)
    why = "" if points >= least else f"scores {points:.1f}, less than {least:.1f}"
    return replace(row, score=points, error=error, why=why)


def _timed(rows: list[Candidate], made: _Making, batch: int, seconds: float) -> list[Candidate]:
    """Rows with their times for one batch, measured in turns."""
    repeats = -(-batch // len(made.images))
    images = np.concatenate([made.images] * repeats)[:batch]
    calls = {row.name: partial(_start(row, made.folder, batch), images) for row in rows}
    times = {name: t.milliseconds() for name, t in side_by_side(calls, seconds=seconds).items()}
    return [
        replace(
            row,
            milliseconds=times[row.name]["median"],
            low=times[row.name]["low"],
            high=times[row.name]["high"],
        )
        for row in rows
    ]


# ---------------------------------------------------------------- what is asked


def _checked(
    images: Tensor | np.ndarray, calibration: Tensor | np.ndarray | None, batch: int, guard: float
) -> tuple[np.ndarray, np.ndarray]:
    if batch < 1 or not 0 <= guard <= 100:
        raise FoveateError(
            f"batch {batch} and guard {guard:g} make no sense: give a batch of 1 or more and a "
            "guard of 0 to 100 points"
        )
    arrays = [
        np.ascontiguousarray(g.numpy(force=True) if isinstance(g, Tensor) else g, np.float32)
        for g in (images, images if calibration is None else calibration)
    ]
    if any(a.ndim != 4 or len(a) < 2 for a in arrays):
        raise FoveateError(
            f"images of shape {arrays[0].shape} cannot judge a network: give two or more as "
            "(N, C, H, W)"
        )
    return arrays[0], arrays[1][:CALIBRATION_IMAGES]


def _hits(targets: np.ndarray, logits: np.ndarray) -> float:
    """Percent of images that get their class."""
    return 100 * float((logits.argmax(1) == targets).mean())


def _candidate(row: dict[str, Any]) -> Candidate:
    return Candidate(**{**row, "floats": tuple(row["floats"])})
