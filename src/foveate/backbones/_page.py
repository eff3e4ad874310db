"""Every native size as a page: what it costs, how fast it is here, where it comes from."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import torch

from foveate.backbones.base import Backbone, Size
from foveate.backbones.registry import create_model, sizes
from foveate.measure import count

DOCS = Path(__file__).resolve().parents[3] / "docs"
TIMED = DOCS.parent / "benchmarks" / "backbones.json"
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
    timed = json.loads(TIMED.read_text("utf-8")) if TIMED.exists() else {}
    families: dict[type[Backbone], dict[str, Size]] = {}
    for name, (family, size) in sizes().items():
        families.setdefault(family, {})[name] = size
    parts = [INTRODUCTION]
    if timed:
        where = timed["machine"]
        parts.append(
            "Times are of one image in eager PyTorch, float32, channels_last, on "
            f"{where['processor']} with {where['threads']} threads, torch "
            f"{where['versions']['torch']}, {where['date'][:10]}: "
            "`python benchmarks/backbones.py`.\n"
        )
    for family in sorted(families, key=lambda f: f.__name__.lower()):
        parts.append(_section(family, families[family], timed.get("milliseconds", {})))
    return "\n".join(parts)


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
