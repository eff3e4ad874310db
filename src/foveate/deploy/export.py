"""Export a model to every format, and choose the fastest that is good enough."""

import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.data import Dataset, Split
from foveate.deploy import artifact
from foveate.deploy.candidates import Candidate, Way, promising
from foveate.deploy.card import model_card
from foveate.deploy.fastest import Search
from foveate.deploy.formats import (
    Program,
    save_openvino,
    to_openvino,
    write_onnx,
    write_torch,
)
from foveate.deploy.images import split_input
from foveate.deploy.parity import parity
from foveate.deploy.programs import Programs
from foveate.deploy.quantise import CALIBRATION_IMAGES
from foveate.deploy.runtimes import (
    FILES,
    ExportRuntime,
    Logits,
    OpenVinoRuntime,
    TorchRuntime,
    executed,
    start,
)
from foveate.errors import FoveateError
from foveate.measure import Timing, machine, side_by_side, timing
from foveate.surgery.exported import exported_layers
from foveate.vision import VisionModel

JUDGES = 2000
"""Images of the validation split that the guard looks at, at most."""
CHECKS = 4
"""Images in check.npz."""
SEARCH_BYTES = 2**28
"""Of images that the search for the fastest programs holds and judges by, at most."""
MANY = 32
"""Images a call that streams are tried with."""
FORMATS = tuple(FILES)
"""Every format that can be asked for."""
WAY_OF: dict[str, Way] = {
    "onnx": ("onnxruntime", "float32"),
    "onnx-int8": ("onnxruntime", "int8"),
    "openvino": ("openvino", "float32"),
    "openvino-bf16": ("openvino", "bfloat16"),
    "openvino-int8": ("openvino", "int8"),
    "openvino-int8-bf16": ("openvino", "int8-bfloat16"),
}
"""How each format that is no PyTorch runs."""


@dataclass(frozen=True)
class Artifact:
    """What an export came to.

    Attributes:
        folder: the artifact.
        chosen: name of the format that `foveate.load` uses.
        formats: a row a format, JSON-ready.
        absent: formats that were asked for and could not be had, with the reasons.
    """

    folder: Path
    chosen: str
    formats: list[dict[str, Any]]
    absent: dict[str, str]


def export(
    model: VisionModel,
    data: Dataset,
    folder: Path,
    *,
    guard: float = 1.0,
    formats: Collection[str] | None = None,
    budget: float = 180.0,
    again: bool = False,
    told: Callable[[str], None] = lambda text: None,
) -> Artifact:
    """Write the artifact of a model.

    What the model brings quantised stays so, in every format; it is not quantised again, so
    there are no INT8 formats of it. A row's `quantised` says which of these layers the format
    computes in `integers` here, and which in `floats`.

    A format's program is the fastest of its kind that a `Search` finds: of the lean
    graph or the plain one, and INT8 with as many layers in float as the guard asks for.

    Args:
        model: a trained one.
        data: INT8 is calibrated on its training images; the guard judges on
            its validation split, or on `train` where that is empty.
        folder: where the artifact goes; an older one is replaced when all is done.
        guard: points of top-1 that a format may lose against the trained model.
        formats: which to write; by default all that may be the fastest on this processor.
            `torch` always is.
        budget: seconds for the search.
        again: measure again what was measured on this machine in the last 30 days.
        told: called with a word on what is under way.

    Raises: FoveateError for an unknown format, a missing library, a full disk or a
        folder that holds something else than a model.
    """
    if formats is None:
        ways = promising()
        formats = [name for name in FORMATS if name not in WAY_OF or WAY_OF[name] in ways]
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise FoveateError(f"there is no format {unknown[0]!r}: choose from {', '.join(FORMATS)}")
    if not 0 <= guard <= 100:
        raise FoveateError(f"guard is {guard}: give points between 0 and 100")
    try:
        options = {"guard": guard, "budget": budget, "again": again, "told": told}
        return _export(model.eval().cpu(), data, folder, formats, options)
    except OSError as error:
        raise artifact.cannot_write(folder, error) from error


def _export(
    model: VisionModel,
    data: Dataset,
    folder: Path,
    formats: Collection[str],
    options: dict[str, Any],
) -> Artifact:
    guard, told = options["guard"], options["told"]
    draft = artifact.Draft(folder)
    artifact.save(model, draft.folder)
    split_name = "val" if len(data.splits["val"]) else "train"
    judges = data.splits[split_name]
    asked = {name: WAY_OF[name] for name in formats if name in WAY_OF}
    found: dict[str, Candidate] = {}
    absent: dict[str, str] = {}
    if asked:
        search = _search(model, data.splits["train"], judges, asked.values(), options)
        found, absent = _write_programs(search, asked, draft.folder)
    runtimes = _start_all(model, found, draft.folder, formats, told)
    told("comparing formats")
    judged = _Judged.of(runtimes, judges, model)
    timings = _time_formats(runtimes, model.preprocess.size)
    layers = exported_layers(model)
    rows = [
        {
            **_row(name, draft.folder, judged, timings[name], guard),
            "options": _options(found.get(name)),
            "quantised": asdict(executed(runtime, layers)),
        }
        for name, runtime in runtimes.items()
    ]
    chosen = _choose(rows)
    if chosen["name"].startswith("openvino"):
        told("trying streams")
        chosen["options"]["streams"] = _streams(chosen["name"], draft.folder, model)
    images = judged.images[:CHECKS]
    artifact.write_check(draft.folder, images, judged.logits["torch"][:CHECKS])
    facts = {
        **artifact.describe(model),
        "guard": guard,
        "formats": rows,
        "absent": absent,
        "chosen": chosen["name"],
        "programs": {name: row.name for name, row in found.items()},
        "judged_split": split_name,
        "judged_on": len(judged.targets),
        "tolerances": {
            name: _tolerance(judged.logits["torch"][:CHECKS], runtime(images))
            for name, runtime in runtimes.items()
        },
        "machine": machine(),
    }
    (draft.folder / "README.md").write_text(model_card(facts))
    artifact.write_facts(draft.folder, facts)
    draft.publish()
    return Artifact(folder, chosen["name"], rows, absent)


# ---------------------------------------------------------------- programs


def _search(
    model: VisionModel,
    train: Split,
    judges: Split,
    ways: Collection[Way],
    options: dict[str, Any],
) -> Search:
    """A search for the fastest programs, of which some images of a split are the judges."""
    most = min(JUDGES, SEARCH_BYTES // (12 * model.preprocess.size**2))
    indices = _two_or_more(_evenly(judges, most))
    calibrated = _two_or_more(_evenly(train, CALIBRATION_IMAGES))
    return Search(
        Program(model).eval(),
        split_input(judges, indices, model.preprocess),
        targets=judges.targets[indices],
        calibration=split_input(train, calibrated, model.preprocess),
        ways=ways,
        seconds=0.4,
        **options,
    )


def _write_programs(
    search: Search, asked: dict[str, Way], folder: Path
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Write the fastest program of each format that is found by a search.

    Returns: what each is; and the formats that are not, with the reasons.
    """
    table, _ = search.table()
    able = {name: way for name, way in asked.items() if way in search.possible}
    found: dict[str, Candidate] = {}
    for file in dict.fromkeys(FILES[name][0] for name in able):
        sharing = {name: way for name, way in able.items() if FILES[name][0] == file}
        rows = [row for row in table if row.way in sharing.values() and row.milliseconds]
        if not rows and "int8" not in file:  # too slow to be looked at further, but asked for
            rows = [Candidate(search.programs.graphs[0], *next(iter(sharing.values())))]
        if rows:
            _write(search.programs, rows[0], folder / file)
            found |= {name: _sharing(rows, way) for name, way in sharing.items()}
    lacking = {name: way for name, way in asked.items() if name not in found}
    return found, {
        name: next(row.why for row in table if row.way == way) for name, way in lacking.items()
    }


def _sharing(rows: list[Candidate], way: Way) -> Candidate:
    """How the program of the first row runs in a way, which may not have been timed with it.

    Formats that share a file share its program, though each may be fastest with another.
    """
    alike = [row for row in rows if row.program == rows[0].program]
    own = [row for row in alike if row.way == way and row.streams == 1]
    untimed = {"streams": 1, "milliseconds": None, "low": None, "high": None}
    runtime, precision = way
    return own[0] if own else replace(rows[0], runtime=runtime, precision=precision, **untimed)


def _write(programs: Programs, row: Candidate, path: Path) -> None:
    """Put the program of a candidate at a path."""
    if path.suffix == ".onnx" or row.is_quantised:
        source = programs.path(row)
        for file in source.parent.glob(f"{source.stem}.*"):
            shutil.copy(file, path.with_suffix(file.suffix))
    else:
        save_openvino(programs.float32(row.graph), path)


def _start_all(
    model: VisionModel,
    found: dict[str, Candidate],
    folder: Path,
    formats: Collection[str],
    told: Callable[[str], None],
) -> dict[str, Logits]:
    """Each format's runtime, the trained model's first."""
    runtimes: dict[str, Logits] = {"torch": TorchRuntime(Program(model))}
    if "torch.export" in formats:
        told("writing torch.export")
        runtimes["torch.export"] = ExportRuntime(write_torch(model, folder / "model.pt2"))
    for name, row in found.items():
        runtimes[name] = start(name, folder, model, threads=row.threads)
    return runtimes


def _options(row: Candidate | None) -> dict[str, int]:
    """What `start` is told of a format's program."""
    return {"threads": row.threads} if row else {}


def _evenly(split: Split, most: int) -> np.ndarray:
    """Indices of so many images at most, evenly taken from a split."""
    return np.linspace(0, len(split) - 1, min(most, len(split))).astype(np.int64)


def _two_or_more(indices: np.ndarray) -> np.ndarray:
    """Indices, repeated where there is one alone: graphs are captured with two images."""
    return np.resize(indices, max(2, len(indices)))


def _streams(name: str, folder: Path, model: VisionModel) -> int:
    """Into how many parts OpenVINO should take a batch of many images."""
    size, most = model.preprocess.size, torch.get_num_threads()
    images = np.random.default_rng(0).random((MANY, 3, size, size), dtype=np.float32)
    counts = sorted({1, 2, most}) if most > 1 else [1]
    calls = {n: partial(start(name, folder, model, streams=n), images) for n in counts}
    times = side_by_side({str(n): call for n, call in calls.items()}, seconds=0.3)
    return min(counts, key=lambda n: times[str(n)].median)


# ---------------------------------------------------------------- comparing


@dataclass(frozen=True)
class _Judged:
    """What each format says of the same images: logits (N, K) by name."""

    images: np.ndarray
    targets: np.ndarray
    logits: dict[str, np.ndarray]

    @classmethod
    def of(cls, runtimes: dict[str, Logits], split: Split, model: VisionModel) -> "_Judged":
        indices = _evenly(split, JUDGES)
        some = split_input(split, indices[: max(CHECKS, 1)], model.preprocess)
        logits: dict[str, list[np.ndarray]] = {name: [] for name in runtimes}
        for part in np.array_split(indices, max(1, len(indices) // 64)):
            images = split_input(split, part, model.preprocess)
            for name, runtime in runtimes.items():
                logits[name].append(runtime(images))
        joined = {name: np.concatenate(parts) for name, parts in logits.items()}
        return cls(some, split.targets[indices], joined)


def _time_formats(runtimes: dict[str, Logits], size: int) -> dict[str, Timing]:
    """Latency of one image in every format, measured in turn."""
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    return side_by_side({name: partial(run, image) for name, run in runtimes.items()}, seconds=0.7)


def _row(name: str, folder: Path, judged: _Judged, latency: Timing, guard: float) -> dict[str, Any]:
    result = parity(judged.logits["torch"], judged.logits[name], judged.targets)
    assert result.top1_before is not None
    assert result.top1_after is not None
    lost = 100 * (result.top1_before - result.top1_after)
    passed = lost <= guard + 1e-9
    return {
        "name": name,
        "bytes": sum((folder / file).stat().st_size for file in FILES[name]),
        "latency_ms": latency.milliseconds(),
        "top1": result.top1_after,
        "parity": asdict(result),
        "passed": passed,
        "why": "" if passed else f"loses {lost:.1f} points, more than {guard:g}",
        "chosen": False,
    }


def _choose(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mark the fastest that passed and can be started from its files."""
    able = [row for row in rows if row["passed"] and row["name"] != "torch.export"]
    best = min(able, key=lambda row: row["latency_ms"]["median"])
    best["chosen"] = True
    return best


def _tolerance(expected: np.ndarray, given: np.ndarray) -> float:
    """How far a format may be from the trained model's logits on another machine."""
    scale = float(np.abs(expected).max())
    return 3 * float(np.abs(expected - given).max()) + 1e-3 * scale + 1e-6


def latency(model: VisionModel, seconds: float = 0.5) -> Timing:
    """How long one image takes on this machine, in OpenVINO's float32, or in PyTorch without it.

    Args:
        model: need not be trained.
        seconds: to measure for.
    """
    import tempfile

    size = model.preprocess.size
    model = model.eval()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            write_onnx(model, path)
            runtime: Logits = OpenVinoRuntime(to_openvino(path))
    except FoveateError:
        runtime = TorchRuntime(Program(model))
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    return timing(partial(runtime, image), seconds=seconds)
