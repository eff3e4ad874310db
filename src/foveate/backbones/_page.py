"""Every native size as a page: what it costs, how fast it is here, where it comes from."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch

from foveate.backbones.base import Backbone, Size
from foveate.backbones.registry import create_model, sizes
from foveate.measure import count, machine_line

DOCS = Path(__file__).resolve().parents[3] / "docs"
BENCHMARKS = DOCS.parent / "benchmarks"
INTRODUCTION = """\
# Backbones

*Made by `make docs` from the code; not edited by hand.*

Every size that `foveate.create_model` builds natively, and timm builds after
`import foveate.timm`. Parameters and multiply-adds are counted at the input size;
top-1 is what the authors publish for ImageNet-1K without other data, where it is
written down here.
"""


def backbones_page() -> str:
    """The page, as Markdown."""
    timed = _recorded("backbones")
    families: dict[type[Backbone], dict[str, Size]] = {}
    for name, (family, size) in sizes().items():
        families.setdefault(family, {})[name] = size
    parts = [INTRODUCTION]
    if timed:
        parts.append(
            "Times are of one image in eager PyTorch, float32, channels_last, on "
            f"{machine_line(timed['machine'])}: `python benchmarks/backbones.py`.\n"
        )
    parts += [*_learning(), *_against_timm()]
    for family in sorted(families, key=lambda f: f.__name__.lower()):
        parts.append(_section(family, families[family], timed.get("milliseconds", {})))
    return "\n".join(parts)


def _recorded(benchmark: str) -> dict[str, Any]:
    """What a benchmark left, or nothing."""
    file = BENCHMARKS / f"{benchmark}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def _learning() -> list[str]:
    """Whether the smallest size of each family learns in a short training."""
    found = _recorded("families_learn")
    if not found:
        return []
    lines = [
        "## Does it learn?\n",
        "The smallest size of each family, trained from scratch on CIFAR-10 with its own recipe "
        f"for so many seconds and judged on {found['images']:,} test images. Guessing has 10% and "
        f"a loss of {found['chance']:.2f}. This is no ranking: the trainings are far too short "
        "(`python benchmarks/families_learn.py`).\n",
        "| name | seconds | threads | epochs | loss | top-1, % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, of in found["families"].items():
        lines.append(
            f"| {name}{' with a stem of stride 2' if of['options'] else ''} | {of['seconds']:.0f} "
            f"| {of['threads']} | {of['epochs']:.1f} | {of['loss']:.2f} | {100 * of['top1']:.1f} |"
        )
    return ["\n".join(lines) + "\n"]


def _against_timm() -> list[str]:
    """How long ours take against timm's."""
    found = _recorded("against_timm")
    if not found:
        return []
    lines = [
        "## Against timm\n",
        "timm's time over ours with the same architecture, float32, eager, each library in the "
        "memory layout in which it is faster; interleaved, with 99% intervals "
        "(`python benchmarks/against_timm.py`).\n",
        "| name | forward, 1 image | forward and backward, 4 images |",
        "|---|---:|---:|",
    ]
    for name, kinds in found["ratios"].items():
        cells = [f"{m:.2f}x ({low:.2f} to {high:.2f})" for m, low, high in kinds.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return ["\n".join(lines) + "\n"]


def write_page(path: Path) -> Path:
    """Write the page."""
    path.write_text(backbones_page(), encoding="utf-8")
    return path


def _section(
    family: type[Backbone], named: dict[str, Size], milliseconds: dict[str, list[float]]
) -> str:
    module = sys.modules[family.__module__]
    source = Path(inspect.getfile(family)).name
    text = inspect.getdoc(module) or ""
    lines = [
        f"## {family.__name__}\n",
        f"{text}\n",
        f"[backbones/{source}](../src/foveate/backbones/{source})\n",
        "| name | pixels | parameters, M | multiply-adds, G | one image, ms | top-1, % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, size in named.items():
        params, macs = _counted(name)
        taken = milliseconds.get(name)
        cells: list[Any] = [
            f"`{name}`",
            size.side,
            f"{params / 1e6:.1f}" if params >= 1e6 else f"{params / 1e6:.2f}",
            f"{macs / 1e9:.2f}",
            f"{taken[0]:.1f}" if taken else "–",
            size.top1 or "–",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _counted(name: str) -> tuple[int, int]:
    """Parameters and multiply-adds at the size's own resolution, without computing anything."""
    with torch.device("meta"):
        model: Any = create_model(name).eval()
        found = count(model, torch.zeros(1, *model.default_cfg["input_size"]))
    return found.params, found.macs
