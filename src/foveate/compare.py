"""Token mixers in one skeleton, at equal parameters or multiply-adds, under one recipe.

As stm_evaluation (arXiv 2211.05781) argues, a mixer is judged fairly only where
all around it is the same.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import foveate
from foveate.backbones.stm_evaluation import Mixer, Skeleton, at_equal, depthwise
from foveate.catalog.evidence import evidence
from foveate.data import Augment, Dataset
from foveate.data import open as open_data
from foveate.errors import FoveateError
from foveate.measure import count, machine, mean_interval, side_by_side
from foveate.train import Recipe, evaluate, train
from foveate.vision import Preprocess, VisionModel

REFERENCE_WIDTH = 32
SIZES = (16, 32, 64, 128)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What to compare, and how.

    Args:
        mixers: names of `mixers()`.
        source: images, as `foveate.data.open` takes them.
        equal: `macs` or `params`, made the same for all.
        budget: how many; by default what a depthwise 3x3 needs at 32 channels.
        epochs: of every training.
        seeds: trainings of every mixer.
        size: side of the images; by default the smallest usual one that holds them.
        seed: the first seed.
    """

    mixers: tuple[str, ...]
    source: str = "digits"
    equal: str = "macs"
    budget: int | None = None
    epochs: float = 5.0
    seeds: int = 3
    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.mixers) < 2:
            raise FoveateError(f"name two mixers or more, of {', '.join(mixers())}")
        for name in self.mixers:
            if name not in mixers():
                raise FoveateError(f"there is no mixer {name!r}: choose from {', '.join(mixers())}")
        if self.equal not in ("macs", "params"):
            raise FoveateError(f"--equal is {self.equal!r}: choose macs or params")
        for name in ("budget", "epochs", "seeds", "size"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise FoveateError(f"--{name} is {value}: give more than 0")


@cache
def mixers() -> dict[str, Mixer]:
    """Every token mixer by name: plain ones, and each operator of a paper that keeps the shape of
    its input and needs no more than its channels."""
    plain: dict[str, Mixer] = {
        "identity": lambda dim: nn.Identity(),
        "depthwise3": partial(depthwise, 3),
        "depthwise7": partial(depthwise, 7),
    }
    return plain | _operators()


def compare(asked: Asked, told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Train and time the skeleton with each mixer.

    Every mixer has the same seeds, so that a seed's order and augmentation are
    those of all.

    Args:
        asked: what and how.
        told: called with a word on what is under way.

    Returns: JSON-ready: for each mixer its width, parameters, multiply-adds,
        latency and accuracies, with intervals; and differences to the best.
    """
    data = open_data(asked.source, seed=asked.seed)
    size = asked.size or _size_for(data)
    budget = asked.budget or _usual_budget(asked.equal, size, len(data.labels))
    build = {
        name: partial(
            at_equal,
            mixers()[name],
            budget,
            asked.equal,
            size=size,
            num_classes=len(data.labels),
            multiple=4,
        )
        for name in asked.mixers
    }
    rows = [_weigh(name, make(), size) for name, make in build.items()]
    told("timing side by side")
    nets = {name: make().eval() for name, make in build.items()}
    image = torch.rand(1, 3, size, size).contiguous(memory_format=torch.channels_last)
    timings = side_by_side({name: _call(net, image) for name, net in nets.items()})
    for row in rows:
        row["latency_ms"] = timings[row["name"]].milliseconds()
        tops = []
        for i in range(asked.seeds):
            told(f"training {row['name']}, seed {asked.seed + i}")
            tops.append(_accuracy(build[row["name"]], data, size, asked, asked.seed + i))
        row["accuracies"] = tops
        row["top1"], *row["interval"] = _bounded(mean_interval(np.array(tops)))
    _against_the_best(rows)
    return {
        "foveate": foveate.__version__,
        "asked": asdict(asked),
        "budget": budget,
        "size": size,
        "machine": machine(),
        "mixers": sorted(rows, key=lambda row: -row["top1"]),
    }


# ---------------------------------------------------------------- how it is done


def _operators() -> dict[str, Mixer]:
    found: dict[str, Mixer] = {}
    for slug, symbols in evidence().symbols.items():
        classes = [s.split(":") for s in symbols if s.startswith("ops/")]
        able = [cls for file, name in classes if (cls := _mixing(file, name))]
        for cls in able:
            found[slug if len(able) == 1 else f"{slug}.{cls.__name__}"] = cls
    return found


def _mixing(file: str, name: str) -> type[nn.Module] | None:
    """A class of `ops/` if it mixes tokens given nothing but a number of channels."""
    module = importlib.import_module(f"foveate.ops.{Path(file).stem}")
    cls = getattr(module, name)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        return None
    required = [
        p
        for p in inspect.signature(cls).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if [p.name for p in required] != ["dim"]:
        return None
    x = torch.zeros(1, REFERENCE_WIDTH, 8, 8)
    try:
        with torch.no_grad():
            mixed = cls(REFERENCE_WIDTH).eval()(x)
    except (RuntimeError, TypeError, FoveateError):  # it works on something other than one map
        return None
    return cls if isinstance(mixed, torch.Tensor) and mixed.shape == x.shape else None


def _size_for(data: Dataset) -> int:
    side = min(data.summary()["sizes"]["median"])
    return next((usual for usual in SIZES if usual >= side), SIZES[-1])


def _usual_budget(equal: str, size: int, classes: int) -> int:
    dims = (REFERENCE_WIDTH, 2 * REFERENCE_WIDTH, 4 * REFERENCE_WIDTH)
    net = Skeleton(partial(depthwise, 3), classes, dims=dims)
    counted = count(net, torch.zeros(1, 3, size, size))
    return counted.params if equal == "params" else counted.macs


def _weigh(name: str, net: Skeleton, size: int) -> dict[str, Any]:
    counted = count(net, torch.zeros(1, 3, size, size))
    return {
        "name": name,
        "width": net.feature_info[0]["num_chs"],
        "params": counted.params,
        "macs": counted.macs,
        "uncounted": counted.uncounted,
    }


def _call(net: nn.Module, image: torch.Tensor) -> Callable[[], Any]:
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @torch.inference_mode()
    def call() -> Any:
        return net(image)

    return call


def _accuracy(
    make: Callable[[], Skeleton], data: Dataset, size: int, asked: Asked, seed: int
) -> float:
    torch.manual_seed(seed)
    model = VisionModel(make(), Preprocess(size=size), data.labels, {"name": "in a skeleton"})
    fields = dict(Skeleton.recipe)
    flip = asked.source != "digits"
    recipe = Recipe(
        epochs=asked.epochs,
        augment=Augment(shift=max(1, size // 16), flip=flip),
        evaluate_every=1e9,
        checkpoint_every=1e9,
        **fields,
    )
    with TemporaryDirectory() as folder:
        train(model, data, replace(recipe, seed=seed), Path(folder), progress=False)
    return evaluate(model, data.splits["test"]).top1


def _against_the_best(rows: list[dict[str, Any]]) -> None:
    """Differences to the best mixer over the same seeds, and whether they can be told."""
    best = max(rows, key=lambda row: row["top1"])
    for row in rows:
        lost = np.array(best["accuracies"]) - np.array(row["accuracies"])
        figure, low, high = _bounded(mean_interval(lost))
        told = "best" if row is best else "worse" if low > 0 else "inconclusive"
        row["behind"] = {"points": 100 * figure, "low": 100 * low, "high": 100 * high}
        row["verdict"] = told


def _bounded(estimate: tuple[float, float, float]) -> list[float]:
    """An interval of accuracies or their differences cannot leave [-1, 1]."""
    return [float(np.clip(value, -1, 1)) for value in estimate]
