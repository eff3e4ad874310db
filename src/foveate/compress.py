"""`foveate compress`: edits made one after the other, and what each of them cost and gave."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from foveate.data import Dataset
from foveate.data import open as open_data
from foveate.deploy import load_network, parity, save
from foveate.deploy.artifact import Draft
from foveate.deploy.card import in_integers
from foveate.deploy.images import split_input
from foveate.deploy.overflow import sums_overflow
from foveate.deploy.runtimes import Logits, executed
from foveate.deploy.started import start_in
from foveate.errors import FoveateError
from foveate.measure import count, machine, side_by_side
from foveate.surgery.edit import Edit
from foveate.surgery.exported import exported_layers
from foveate.surgery.masks import sparsity
from foveate.surgery.replay import edit_class
from foveate.train import evaluate
from foveate.vision import IMAGENET_MEAN, IMAGENET_STD, Preprocess, VisionModel

JUDGES = 2000
"""Images of the validation split that accuracy is measured on, at most."""
BATCH = 32
FOLLOWED, MOST_STRAYS = 200, 0.02
"""Images whose labels by the program are compared with the model's own, at most, and the share
that may differ without a remark."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to compress, and how.

    Args:
        model: a model's folder, or an architecture as `foveate.create_model` takes it.
        edits: in order, each "NAME" or "NAME:field=value,field=value".
        out: folder of the compressed model, or None to measure only.
        source: images with labels, as `foveate.data.open` takes them, or None.
        guard: points of top-1 that all edits together may cost, or None.
        calibration: images that edits look at, at most.
        pretrained: an architecture begins with published weights.
        size: side of an architecture's images.
        seconds: of timing for each stage.
        seed: of the data's split, where it has none.

    Raises: FoveateError that names the field.
    """

    model: str
    edits: tuple[str, ...]
    out: Path | None = None
    source: str | None = None
    guard: float | None = None
    calibration: int = 256
    pretrained: bool = False
    size: int | None = None
    seconds: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.edits:
            raise FoveateError(
                "there is no edit: give one or more, such as --edit narrow:share=0.3"
            )
        if self.guard is not None and self.source is None:
            raise FoveateError("--guard needs labelled images to judge by: give --data, too")
        if self.guard is not None and not 0 <= self.guard <= 100:
            raise FoveateError(f"--guard is {self.guard:g}: give 0 to 100 points")
        if self.calibration < 1:
            raise FoveateError(f"--calibration is {self.calibration}: give 1 or more")


def compress(asked: Asked, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Apply edits, measure every stage, and write the last one.

    Args:
        asked: what and how.
        told: called with a word on what is under way.

    Returns: JSON-ready: `stages` (the first is the model as it was), `runtime`, and for
        each edit its `coverage`.
    Raises: FoveateError if an edit cannot be made, or the guard is not kept; nothing is
        written then.
    """
    edits = [parse(text) for text in asked.edits]
    draft = Draft(asked.out) if asked.out else None
    try:
        facts, model = _compressed(asked, edits, told)
        if draft:
            save(model, draft.folder)
            draft.publish()
    finally:
        if draft:
            shutil.rmtree(draft.folder, ignore_errors=True)
    return facts


def _compressed(
    asked: Asked, edits: list[Edit], told: Callable[[str], None]
) -> tuple[dict[str, Any], VisionModel]:
    """What `compress` returns, and the last stage."""
    data = open_data(asked.source, seed=asked.seed) if asked.source else None
    model = load_for_edits(asked.model, data, size=asked.size, pretrained=asked.pretrained)
    data = data and data.labelled_as(model.labels)
    if data is None and (needing := [type(e).__name__ for e in edits if e.looks_at == "images"]):
        raise FoveateError(f"{needing[0]} decides by real images: give --data")
    images = seen_by_edits(model, data, asked.calibration)
    stages, coverage = [("as it was", model)], []
    for text, edit in zip(asked.edits, edits, strict=True):
        told(text)
        model, lines = edit.apply(model, images)
        assert isinstance(model, VisionModel)
        stages.append((text, model))
        coverage.append({"edit": text, "lines": [asdict(line) for line in lines]})
    facts: dict[str, Any] = {"machine": machine(), "coverage": coverage}
    facts["stages"] = [_figures(name, model, data, told) for name, model in stages]
    _compare(facts["stages"])
    told("timing")
    facts["runtime"], timed = _times([model for _, model in stages], data, asked.seconds)
    for row, figures in zip(facts["stages"], timed, strict=True):
        row |= figures
    _demand_guard(asked, facts["stages"])
    return facts, model


def parse(text: str) -> Edit:
    """An edit as the command line has it: "quantise:weight_bits=4,skip=stem+head".

    Values are JSON or plain text; several are joined by "+", and nothing is "none".

    Raises: FoveateError that names what is not understood.
    """
    name, _, rest = text.partition(":")
    kind = edit_class(name)
    given: dict[str, Any] = {}
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    for part in filter(None, rest.split(",")):
        field, equals, value = part.partition("=")
        if not equals:
            raise FoveateError(f"{part!r} in --edit {text} is no field: write FIELD=VALUE")
        several = types.get(field, "").startswith("tuple")
        given[field] = tuple(map(_value, value.split("+"))) if several else _value(value)
    try:
        return kind.from_json(given)
    except TypeError as error:
        raise FoveateError(f"--edit {text} is not understood ({error}): mend its fields") from error


def table(facts: dict[str, Any]) -> Table:
    """The stages side by side."""
    first = facts["stages"][0]
    shown = Table(
        "", "top-1", "same label", "size", "zeros", "MACs", f"latency ({facts['runtime']})"
    )
    for row in facts["stages"]:
        time, line = row["latency_ms"], in_integers(row)
        faster = first["latency_ms"]["median"] / time["median"]
        shown.add_row(
            row["name"],
            "" if row["top1"] is None else f"{row['top1']:.2%}",
            "" if row["same"] is None else f"{row['same']:.2%}",
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['zeros']:.1%}",
            f"{row['macs'] / 1e6:.1f} M",
            f"{time['median']:.2f} ms ({time['low']:.2f} to {time['high']:.2f}), {faster:.2f}x"
            + (f"; {line}" if line else ""),
        )
    return shown


def remarks(facts: dict[str, Any]) -> list[str]:
    """A sentence for each stage whose program often answers otherwise than the model itself."""
    found = []
    for row in facts["stages"]:
        if row["strays"] is None or row["strays"] <= MOST_STRAYS:
            continue
        found.append(
            f"{row['name']}: {facts['runtime']} gives {row['strays']:.1%} of images another label "
            "than the model itself has for them."
        )
        if row["quantised"]["integers"] and sums_overflow():
            found[-1] += (
                " This processor has no VNNI, so that sums of 8-bit products overflow: round "
                "weights to 7 bits (weight_bits=7)."
            )
    return found


def print_coverage(facts: dict[str, Any], console: Console) -> None:
    """What each edit did to every part, and what it left and why."""
    for edit in facts["coverage"]:
        shown = Table("part", "kind", "", title=edit["edit"], title_justify="left")
        for line in edit["lines"]:
            style = None if line["changed"] else "dim"
            shown.add_row(line["name"], line["kind"], line["why"], style=style)
        console.print(shown)


# ---------------------------------------------------------------- what is edited and judged


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def load_for_edits(
    model: str, data: Dataset | None, *, size: int | None = None, pretrained: bool = False
) -> VisionModel:
    """What is to be edited.

    Args:
        model: a model's folder, or an architecture as `foveate.create_model` takes it.
        data: whose labels an architecture gets.
        size: side of its images.
        pretrained: it begins with published weights.

    Raises: FoveateError if there is no such model, or it says nothing of its preprocessing.
    """
    if Path(model, "model.json").exists():
        return _with_preprocessing(load_network(model), model, size)
    if Path(model).is_dir():
        raise FoveateError(f"{model} is no model's folder, as it has no model.json")
    labels = data.labels if data else [str(i) for i in range(1000)]
    return VisionModel.create(model, labels, size, pretrained=pretrained).eval()


def _with_preprocessing(network: nn.Module, name: str, size: int | None) -> VisionModel:
    """A network alone with the preprocessing that it was published with."""
    if isinstance(network, VisionModel):
        return network
    published = getattr(network, "default_cfg", None)
    classes = getattr(network, "num_classes", None)
    if not isinstance(published, dict) or not isinstance(classes, int):
        raise FoveateError(
            f"{name} holds a network without labels and preprocessing: save it as a "
            "foveate.VisionModel"
        )
    preprocess = Preprocess(
        size=size or published.get("input_size", (3, 224, 224))[-1],
        mean=tuple(published.get("mean", IMAGENET_MEAN)),
        std=tuple(published.get("std", IMAGENET_STD)),
    )
    return VisionModel(network, preprocess, [str(i) for i in range(classes)]).eval()


def seen_by_edits(
    model: VisionModel, data: Dataset | None, most: int, batch: int = BATCH
) -> list[Tensor]:
    """Batches that edits look at: training images, or noise where only shapes matter.

    Every batch spans the whole split, which may be in the order of the classes.
    """
    size = model.preprocess.size
    if data is None:
        chance = torch.Generator().manual_seed(0)
        return [torch.rand(2, 3, size, size, generator=chance)]
    split = data.splits["train"]
    chosen = evenly(len(split), most)
    count = -(-len(chosen) // batch)
    parts = [chosen[i::count] for i in range(count)]
    return [torch.from_numpy(split_input(split, part, model.preprocess)) for part in parts]


def evenly(count: int, most: int) -> np.ndarray:
    """Indices of so many of `count` at most, evenly taken."""
    return np.linspace(0, count - 1, min(most, count)).astype(int)


# ---------------------------------------------------------------- figures


def _figures(
    name: str, model: VisionModel, data: Dataset | None, told: Callable[[str], None]
) -> dict[str, Any]:
    told(f"measuring {name}")
    size = model.preprocess.size
    counted = count(model, torch.rand(1, 3, size, size))
    figures: dict[str, Any] = {
        "name": name,
        "bytes": sum(t.numel() * t.element_size() for t in model.state_dict().values()),
        "params": counted.params,
        "zeros": sparsity(model).share,
        "macs": counted.macs,
        "uncounted": counted.uncounted,
        "top1": None,
        "same": None,
    }
    if data is not None:
        split = data.splits["val"]
        found = evaluate(model, split.subset(evenly(len(split), JUDGES)))
        figures |= {"top1": found.top1, "n": len(found.targets), "logits": found.logits}
    return figures


def _times(
    models: list[VisionModel], data: Dataset | None, seconds: float
) -> tuple[str, list[dict[str, Any]]]:
    """The runtime, and for every stage milliseconds of one image, all measured in turns in it.

    A stage's `quantised` says which quantised layers the runtime computed in integers, and
    `strays` what share of images it gives another label than the model does.
    """
    size = models[0].preprocess.size
    image = np.random.default_rng(0).random((1, 3, size, size), dtype=np.float32)
    calls: list[Logits]
    try:
        runtime, calls = "OpenVINO", [start_in("OpenVINO", model) for model in models]
    except FoveateError:
        runtime, calls = "PyTorch", [start_in("PyTorch", model) for model in models]
    named = {str(i): partial(call, image) for i, call in enumerate(calls)}
    times = side_by_side(named, seconds=seconds)
    ways = [executed(call, exported_layers(m)) for call, m in zip(calls, models, strict=True)]
    return runtime, [
        {
            "latency_ms": times[name].milliseconds(),
            "quantised": asdict(way),
            "strays": None if data is None else _strays(call, model, data),
        }
        for name, way, call, model in zip(named, ways, calls, models, strict=True)
    ]


def _strays(call: Logits, model: VisionModel, data: Dataset) -> float:
    """The share of images that a program gives another label than its model does."""
    split = data.splits["val"]
    images = split_input(split, evenly(len(split), FOLLOWED), model.preprocess)
    with torch.inference_mode():
        own = [model.eval()(part).argmax(1) for part in torch.from_numpy(images).split(BATCH)]
    found = np.array([call(image[None])[0].argmax() for image in images])
    return float((found != torch.cat(own).numpy()).mean())


def _compare(stages: list[dict[str, Any]]) -> None:
    """Say how far each stage's logits, which go, are from the first one's."""
    logits = [row.pop("logits", None) for row in stages]
    for row, own in zip(stages, logits, strict=True):
        if own is not None:
            found = parity(logits[0], own)
            row["same"] = found.agreement
            row["parity"] = {"max_error": found.max_error, "cosine": found.cosine}


def _demand_guard(asked: Asked, stages: list[dict[str, Any]]) -> None:
    """Raises: FoveateError if too much accuracy is lost."""
    first, last = stages[0], stages[-1]
    if asked.guard is None:
        return
    lost = 100 * (first["top1"] - last["top1"])
    if lost > asked.guard + 1e-9:
        each = ", ".join(f"{row['name']} {row['top1']:.2%}" for row in stages)
        raise FoveateError(
            f"the edits cost {lost:.2f} points of accuracy, more than the guard of "
            f"{asked.guard:g} ({each}), and nothing was written: edit less, or allow more"
        )
