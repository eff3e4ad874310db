"""Export a model to every format, and choose the fastest that is good enough."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foveate.data import Dataset, Split
from foveate.deploy import artifact
from foveate.deploy.card import model_card
from foveate.deploy.formats import (
    CALIBRATION_IMAGES,
    to_openvino,
    write_int8,
    write_onnx,
    write_openvino,
    write_torch,
)
from foveate.deploy.images import split_input
from foveate.deploy.parity import parity
from foveate.deploy.runtimes import (
    FILES,
    ExportRuntime,
    Logits,
    OpenVinoRuntime,
    TorchRuntime,
    computes_bfloat16,
    start,
)
from foveate.errors import FoveateError
from foveate.measure import Timing, machine, side_by_side, timing
from foveate.vision import VisionModel

JUDGES = 2000
"""Images of the validation split that the guard looks at, at most."""
CHECKS = 4
"""Images in check.npz."""
FORMATS = tuple(FILES)
"""Every format that can be asked for."""


@dataclass(frozen=True)
class Artifact:
    """What an export came to.

    Attributes:
        folder: the artifact.
        chosen: name of the format that `foveate.load` uses.
        formats: a row a format, JSON-ready.
    """

    folder: Path
    chosen: str
    formats: list[dict[str, Any]]


def export(
    model: VisionModel,
    data: Dataset,
    folder: Path,
    *,
    guard: float = 1.0,
    formats: tuple[str, ...] = FORMATS,
    told: Callable[[str], None] = lambda text: None,
) -> Artifact:
    """Write the artifact of a model.

    Args:
        model: a trained one.
        data: INT8 is calibrated on its training images; the guard judges on
            its validation split, or on `train` where that is empty.
        folder: where the artifact goes; an older one is replaced when all is done.
        guard: points of top-1 that a format may lose against the trained model.
        formats: which to write; `torch` always is.
        told: called with a word on what is under way.

    Raises: FoveateError for an unknown format, a missing library, a full disk or a
        folder that holds something else than a model.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise FoveateError(f"there is no format {unknown[0]!r}: choose from {', '.join(FORMATS)}")
    if not 0 <= guard <= 100:
        raise FoveateError(f"guard is {guard}: give points between 0 and 100")
    try:
        return _export(model.eval().cpu(), data, folder, guard, formats, told)
    except OSError as error:
        raise artifact.cannot_write(folder, error) from error


def _export(
    model: VisionModel,
    data: Dataset,
    folder: Path,
    guard: float,
    formats: tuple[str, ...],
    told: Callable[[str], None],
) -> Artifact:
    draft = artifact.Draft(folder)
    artifact.save(model, draft.folder)
    split_name = "val" if len(data.splits["val"]) else "train"
    runtimes = _write_formats(model, data, draft.folder, formats, told)
    told("comparing formats")
    judged = _Judged.of(runtimes, data.splits[split_name], model)
    timings = _time_formats(runtimes, model.preprocess.size)
    rows = [_row(name, draft.folder, judged, timings[name], guard) for name in runtimes]
    chosen = _choose(rows)
    images = judged.images[:CHECKS]
    artifact.write_check(draft.folder, images, judged.logits["torch"][:CHECKS])
    facts = {
        **artifact.describe(model),
        "guard": guard,
        "formats": rows,
        "chosen": chosen,
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
    return Artifact(folder, chosen, rows)


def _write_formats(
    model: VisionModel,
    data: Dataset,
    folder: Path,
    formats: tuple[str, ...],
    told: Callable[[str], None],
) -> dict[str, Logits]:
    """Write each format's files; give each one's runtime, the trained model's first."""
    runtimes: dict[str, Logits] = {"torch": TorchRuntime(model)}
    if "torch.export" in formats:
        told("writing torch.export")
        runtimes["torch.export"] = ExportRuntime(write_torch(model, folder / "model.pt2"))
    rest = [name for name in formats if name not in ("torch", "torch.export")]
    if not rest:
        return runtimes
    told("writing ONNX")
    write_onnx(model, folder / "model.onnx")
    if any(name.startswith("openvino") for name in rest):
        told("writing OpenVINO")
        float_model = write_openvino(folder / "model.onnx", folder / "model.xml")
        if "openvino-int8" in rest:
            told("quantising to INT8")
            images = _calibration_images(data.splits["train"], model)
            write_int8(float_model, images, folder / "model-int8.xml")
    for name in rest:
        if name != "openvino-bf16" or computes_bfloat16():
            runtimes[name] = start(name, folder, model)
    return runtimes


def _calibration_images(split: Split, model: VisionModel) -> np.ndarray:
    """Training images evenly taken from the split."""
    n = min(CALIBRATION_IMAGES, len(split))
    indices = np.linspace(0, len(split) - 1, n).astype(np.int64)
    return split_input(split, indices, model.preprocess)


@dataclass(frozen=True)
class _Judged:
    """What each format says of the same images: logits (N, K) by name."""

    images: np.ndarray
    targets: np.ndarray
    logits: dict[str, np.ndarray]

    @classmethod
    def of(cls, runtimes: dict[str, Logits], split: Split, model: VisionModel) -> "_Judged":
        n = min(JUDGES, len(split))
        indices = np.linspace(0, len(split) - 1, n).astype(np.int64)
        some = split_input(split, indices[: max(CHECKS, 1)], model.preprocess)
        logits: dict[str, list[np.ndarray]] = {name: [] for name in runtimes}
        for part in np.array_split(indices, max(1, n // 64)):
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


def _choose(rows: list[dict[str, Any]]) -> str:
    """Mark the fastest that passed and can be started from its files."""
    able = [row for row in rows if row["passed"] and row["name"] != "torch.export"]
    best = min(able, key=lambda row: row["latency_ms"]["median"])
    best["chosen"] = True
    return best["name"]


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
        runtime = TorchRuntime(model)
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    return timing(partial(runtime, image), seconds=seconds)
