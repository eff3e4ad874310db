"""Where a model's time goes on this machine, and where two models differ.

`profile` counts, times in every runtime side by side, places each layer under
the machine's roof, and fits how the cost grows. `report.profile` makes a page of
what it returns.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import nn

import foveate
from foveate.backbones import require_name
from foveate.data import Batches, Split
from foveate.data import open as open_data
from foveate.deploy import load_model
from foveate.deploy.formats import Program, to_openvino, write_onnx
from foveate.deploy.runtimes import OnnxRuntime, OpenVinoRuntime
from foveate.errors import FoveateError, require
from foveate.measure import (
    Count,
    Waterline,
    ceilings,
    count_each,
    exponent,
    machine,
    paired,
    side_by_side,
    timing,
    waterline,
)
from foveate.vision import VisionModel

RUNTIMES = ("eager", "channels_last", "compile", "onnx", "openvino")
USUAL = ("eager", "channels_last", "onnx", "openvino")
RESOLUTIONS = (0.5, 0.75, 1.0, 1.25, 1.5)
BATCHES = (1, 2, 4, 8)
COUNTED_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to profile.

    Args:
        models: architectures or models' folders; the others are compared with the first.
        resolution: side of the images; by default the first model's own.
        batch: images at once.
        runtimes: of `RUNTIMES`.
        training: time a training step, too.
        growth: fit how the time grows with resolution and batch, too.
        seconds: for each timing, about.
        fresh: measure the machine's ceilings again.
        data: images on which to count models whose work follows their input, as
            `foveate.data.open` takes them.
    """

    models: tuple[str, ...]
    resolution: int | None = None
    batch: int = 1
    runtimes: tuple[str, ...] = USUAL
    training: bool = False
    growth: bool = False
    seconds: float = 1.0
    fresh: bool = False
    data: str | None = None

    def __post_init__(self) -> None:
        for name in ("resolution", "batch", "seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise FoveateError(f"--{name} is {value}: give more than 0")
        for name in self.runtimes:
            if name not in RUNTIMES:
                raise FoveateError(
                    f"there is no runtime {name!r}: choose from {', '.join(RUNTIMES)}"
                )
        for name in self.models:
            if not Path(name, "model.json").exists():
                require_name(name)


def profile(asked: Asked, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Measure what was asked for.

    Args:
        asked: models and conditions.
        told: called with a word on what is under way.

    Returns: JSON-ready: machine, ceilings, and for each model its counts,
        timings, layers and sorts of layers; and ratios to the first model.
    Raises: FoveateError for an unknown model or a missing library.
    """
    models = {name: _load(name, asked.resolution) for name in asked.models}
    side = asked.resolution or next(iter(models.values())).preprocess.size
    images = torch.rand(asked.batch, 3, side, side)
    real = open_data(asked.data).splits["test"] if asked.data else None
    told("measuring the machine's ceilings")
    roof = ceilings(fresh=asked.fresh)
    rows = []
    for name, model in models.items():
        told(f"placing the layers of {name}")
        net = Program(model, merged=True).eval()
        under = waterline(net, images, roof, asked.seconds)
        rows.append({"name": name, **_counts(under.counted), **_places(under, net)})
    with ExitStack() as stack:
        calls, left_out = {}, {}
        for name, model in models.items():
            told(f"preparing the runtimes of {name}")
            ready, reasons = stack.enter_context(_runtimes(model, images, asked.runtimes))
            calls[name], left_out[name] = ready, reasons
        told("timing side by side")
        flat = {(n, r): call for n, ready in calls.items() for r, call in ready.items()}
        timings = side_by_side(
            {f"{n}\n{r}": c for (n, r), c in flat.items()}, seconds=asked.seconds
        )
        ratios = [
            {"runtime": runtime, "model": name, **_ratio(calls[asked.models[0]][runtime], call)}
            for (name, runtime), call in flat.items()
            if name != asked.models[0] and runtime in calls[asked.models[0]]
        ]
    for row in rows:
        row["runtimes"] = {
            runtime: {
                **timings[f"{row['name']}\n{runtime}"].milliseconds(),
                "noisy": timings[f"{row['name']}\n{runtime}"].is_noisy,
            }
            for runtime in calls[row["name"]]
        }
        row["left_out"] = left_out[row["name"]]
        model = models[row["name"]]
        if real is not None:
            told(f"counting {row['name']} on images")
            row["spread"] = _spread(model, real)
        if asked.training:
            told(f"timing training steps of {row['name']}")
            row["training"] = timing(
                _training_step(model, images), seconds=asked.seconds
            ).milliseconds()
        if asked.growth:
            told(f"growing {row['name']}")
            row["growth"] = _growth(model, side, asked.seconds)
    return {
        "foveate": foveate.__version__,
        "machine": machine(),
        "ceilings": asdict(roof),
        "resolution": side,
        "batch": asked.batch,
        "models": rows,
        "ratios": ratios,
    }


def explain(facts: dict[str, Any]) -> list[str]:
    """Sentences on where the first model's time goes, and where the others differ from it."""
    first, *others = facts["models"]
    words = [_explain_one(row) for row in facts["models"]]
    for other in others:
        times = [{s["sort"]: s["milliseconds"] for s in row["sorts"]} for row in (first, other)]
        sorts = sorted({*times[0], *times[1]})
        differences = {s: times[0].get(s, 0.0) - times[1].get(s, 0.0) for s in sorts}
        whole = sum(differences.values())
        slower, faster = (first, other) if whole > 0 else (other, first)
        sign = 1 if whole > 0 else -1
        largest = max(differences, key=lambda s: sign * differences[s])
        words.append(
            f"Layer by layer in eager mode, {slower['name']} takes {abs(whole):.1f} ms more than "
            f"{faster['name']}; the largest difference, {sign * differences[largest]:.1f} ms, is "
            f"in {largest} layers ({times[0].get(largest, 0.0):.1f} ms in {first['name']}, "
            f"{times[1].get(largest, 0.0):.1f} in {other['name']})."
        )
    return words


def runtimes_table(facts: dict[str, Any]) -> Table:
    """Times in every runtime, for the terminal."""
    table = Table("runtime", *(row["name"] for row in facts["models"]), "against the first")
    ratios = {(r["model"], r["runtime"]): r for r in facts["ratios"]}
    for runtime in dict.fromkeys(name for row in facts["models"] for name in row["runtimes"]):
        cells, said = [], []
        for row in facts["models"]:
            found = row["runtimes"].get(runtime)
            cells.append(f"{found['median']:.2f} ms" if found else "left out")
            if ratio := ratios.get((row["name"], runtime)):
                span = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
                said.append(f"{ratio['median']:.2f}x ({span}): {ratio['verdict']}")
        table.add_row(runtime, *cells, "\n".join(said))
    return table


def _explain_one(row: dict[str, Any]) -> str:
    most = max(row["sorts"], key=lambda s: s["milliseconds"])
    bound = (
        "a lower bound, since some operations could not be counted; " if row["uncounted"] else ""
    )
    return (
        f"{row['name']} needs {row['macs'] / 1e9:.2f} G multiply-adds ({bound}"
        f"{row['params'] / 1e6:.1f} M parameters) and reaches {row['efficiency']:.0%} of the "
        f"machine's peak; perfect kernels, one a layer, would reach {row['most']:.0%}. Most of "
        f"the time, {most['share']:.0%}, goes into {most['sort']} layers, at "
        f"{most['efficiency']:.0%} of what their roof allows."
    )


# ---------------------------------------------------------------- models


def _load(name: str, resolution: int | None) -> VisionModel:
    if Path(name, "model.json").exists():
        return load_model(name)
    model = VisionModel.create(name, [str(i) for i in range(1000)], resolution)
    return model.eval()


@contextmanager
def _runtimes(
    model: VisionModel, images: torch.Tensor, wanted: Sequence[str]
) -> Iterator[tuple[dict[str, Callable[[], Any]], dict[str, str]]]:
    """A call for each runtime that can be had, and for the others why not."""
    net, array = Program(model, merged=True).eval(), images.numpy()
    ready: dict[str, Callable[[], Any]] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        for name in wanted:
            try:
                if name in ("onnx", "openvino") and not path.exists():
                    write_onnx(model, path)
                if name == "onnx":
                    run = OnnxRuntime(path)
                    ready[name] = lambda run=run: run(array)
                elif name == "openvino":
                    require("openvino", "deploy")
                    run = OpenVinoRuntime(to_openvino(path))
                    ready[name] = lambda run=run: run(array)
                else:
                    ready[name] = _torch_call(net, images, name)
            except Exception as error:  # an exporter or compiler that cannot do this model
                left_out[name] = str(error).split("\n")[0][:200]
        yield ready, left_out


def _torch_call(net: nn.Module, images: torch.Tensor, name: str) -> Callable[[], Any]:
    net = copy.deepcopy(net)
    if name == "channels_last":
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        images = images.contiguous(memory_format=torch.channels_last)
    program: Any = torch.compile(net) if name == "compile" else net

    @torch.inference_mode()
    def call() -> Any:
        return program(images)

    call()
    return call


def _training_step(model: VisionModel, images: torch.Tensor) -> Callable[[], Any]:
    net = Program(model).train()

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(images).square().mean().backward()

    return step


def _ratio(first: Callable[[], Any], other: Callable[[], Any]) -> dict[str, Any]:
    """How many times as fast as the first the other is, in interleaved pairs."""
    ratio = paired(first, other)
    verdict = {"slower": "faster", "faster": "slower"}.get(ratio.verdict, ratio.verdict)
    return {**asdict(ratio), "verdict": verdict, "noisy": ratio.is_noisy}


def _growth(model: VisionModel, side: int, seconds: float) -> dict[str, Any]:
    """Exponents of the time in resolution and in batch."""
    net = Program(model, merged=True).eval()

    def median(batch: int, pixels: int) -> float | None:
        try:
            call = _torch_call(net, torch.rand(batch, 3, pixels, pixels), "channels_last")
        except (RuntimeError, AssertionError, FoveateError):
            return None  # the architecture does not allow this size
        return timing(call, seconds=seconds / 3).median

    sides = sorted({max(32, round(side * by / 32) * 32) for by in RESOLUTIONS})
    by_side = {pixels: median(1, pixels) for pixels in sides}
    by_batch = {batch: median(batch, side) for batch in BATCHES}
    return {"resolution": _fit(by_side), "batch": _fit(by_batch)}


def _fit(found: dict[int, float | None]) -> dict[str, Any]:
    points = {x: y for x, y in found.items() if y is not None}
    power = (
        asdict(exponent(np.array(list(points)), np.array(list(points.values()))))
        if len(points) > 2
        else None
    )
    return {"milliseconds": {str(x): y * 1e3 for x, y in points.items()}, "exponent": power}


def _spread(model: VisionModel, split: Split) -> dict[str, Any]:
    """Multiply-adds of single images, spread over the split."""
    chosen = np.unique(np.linspace(0, len(split) - 1, COUNTED_IMAGES).astype(int))
    shape = model.preprocess
    batches = Batches(
        split=split.subset(chosen), batch_size=len(chosen), size=shape.size, crop=shape.crop
    )
    found = count_each(model, next(iter(batches.epoch(0))).images)
    return {
        "images": len(found.macs),
        "median": found.median,
        "low": found.quantile(0.05),
        "high": found.quantile(0.95),
    }


# ---------------------------------------------------------------- layers as rows


def _counts(counted: Count) -> dict[str, Any]:
    names = ("params", "macs", "flops", "activations", "bytes", "peak_bytes", "uncounted")
    return {name: getattr(counted, name) for name in names}


def _places(under: Waterline, net: nn.Module) -> dict[str, Any]:
    modules = dict(net.named_modules())
    layers = [
        {
            "name": layer.name.removeprefix("backbone."),
            "sort": sort_of(modules[layer.name], layer.name),
            "milliseconds": layer.seconds * 1e3,
            "flops": layer.flops,
            "bytes": layer.bytes,
            "least_milliseconds": layer.least * 1e3,
            "bound": layer.bound,
        }
        for layer in under.layers
    ]
    return {
        "milliseconds": under.seconds * 1e3,
        "ideal_milliseconds": under.ideal * 1e3,
        "attainable_milliseconds": under.attainable * 1e3,
        "efficiency": under.efficiency,
        "most": under.most,
        "layers": layers,
        "sorts": _by_sort(layers),
    }


def _by_sort(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Layers of a sort together, the slowest sort first."""
    sums: dict[str, dict[str, Any]] = {}
    for layer in layers:
        row = sums.setdefault(layer["sort"], {"sort": layer["sort"], "layers": 0})
        row["layers"] += 1
        for name in ("milliseconds", "flops", "bytes", "least_milliseconds"):
            row[name] = row.get(name, 0) + layer[name]
    whole = sum(row["milliseconds"] for row in sums.values())
    for row in sums.values():
        row["share"] = row["milliseconds"] / whole if whole else 0.0
        taken = row["milliseconds"]
        row["efficiency"] = row["least_milliseconds"] / taken if taken else 1.0
    return sorted(sums.values(), key=lambda row: -row["milliseconds"])


def sort_of(module: nn.Module, name: str = "") -> str:
    """What kind of layer a module is, in words that can be compared across networks."""
    if isinstance(module, nn.Conv2d):
        return _sort_of_convolution(module)
    kind = type(module).__name__
    lower = kind.lower()
    if isinstance(module, nn.Linear):
        return "linear"
    if "norm" in lower:
        return "norm"
    if "attention" in lower or "attn" in lower:
        return "attention"
    if "pool" in lower:
        return "pool"
    if type(module).__module__ == "torch.nn.modules.activation" or "act" in name.split(".")[-1]:
        return "activation"
    return "between layers" if any(True for _ in module.children()) else kind


def _sort_of_convolution(conv: nn.Conv2d) -> str:
    high, wide = conv.kernel_size
    if (high, wide) == (1, 1):
        return "pointwise" if conv.groups == 1 else "grouped 1x1"
    if conv.groups == conv.in_channels > 1:
        return f"depthwise {high}x{wide}"
    if conv.groups > 1:
        return f"grouped {high}x{wide}"
    return f"patch {high}x{wide}" if conv.stride == conv.kernel_size else f"full {high}x{wide}"
