"""Write docs/benchmarks.md from what the benchmarks beside this file have left.

python benchmarks/page.py
"""

from collections import Counter
from pathlib import Path
from typing import Any

from results import Recorded, Row, read, show_ratio

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
INTRODUCTION = """\
# Benchmarks

*Made by `python benchmarks/page.py` from what the benchmarks left; not edited by hand.*

Foveate beside its peers, on one machine, in turns, so that what disturbs one side disturbs all.
A ratio is the peer's time over ours: above 1 ours is faster. Its interval holds 99%. A mark is the
ratio that was to be reached: it is **met** where the whole interval stands above it, *missed* where
the whole interval stands below, open in between. Losses stay in.
"""
VERDICTS = {
    "met": "**met**",
    "missed": "*missed*",
    "open": "open",
    "faster": "faster",
    "slower": "*slower*",
    "even": "even",
}


def page(found: list[tuple[str, Recorded]]) -> str:
    """The page, as Markdown.

    Args:
        found: each benchmark's name and what it left.
    """
    parts = [INTRODUCTION, summary(found)]
    parts += [section(name, recorded) for name, recorded in found]
    return "\n".join(parts)


def summary(found: list[tuple[str, Recorded]]) -> str:
    """A line a benchmark: how many marks are met."""
    lines = ["| benchmark | marks met | missed | open |", "|---|---:|---:|---:|"]
    for name, recorded in found:
        count = Counter(row.verdict for row in recorded.rows if row.mark is not None)
        cells = [f"{count[verdict]}" for verdict in ("met", "missed", "open")]
        lines.append(f"| [{recorded.title}](#{name}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def section(name: str, recorded: Recorded) -> str:
    """What was compared, where, and the rows."""
    lines = [
        f'<a id="{name}"></a>\n',
        f"## {recorded.title}\n",
        f"{recorded.says}\n",
        f"`{recorded.command}`, on {where(recorded.machine)}\n",
        *table(recorded.rows),
    ]
    notes = [f"- {row.what}, {row.peer}: {row.note}" for row in recorded.rows if row.note]
    return "\n".join(lines + (["", *notes] if notes else [])) + "\n"


def where(machine: dict[str, Any]) -> str:
    """The machine in a line."""
    processor = f"{machine['processor']}, {machine['threads']} threads"
    versions = [
        f"{name} {machine['versions'][name]}"
        for name in ("torch", "timm", "torchvision", "openvino", "onnxruntime")
        if name in machine["versions"]
    ]
    named = [machine["gpu"], processor] if machine.get("gpu") else [processor]
    return f"{', '.join([*named, machine['system'], *versions])}, {machine['date'][:10]}."


def table(rows: list[Row]) -> list[str]:
    """The rows; columns that nobody fills are left out."""
    columns = {
        "what": [row.what for row in rows],
        "peer": [row.peer for row in rows],
        "ratio": [show_ratio(row.ratio) for row in rows],
        "mark": ["" if row.mark is None else f"{row.mark:g}x" for row in rows],
        "verdict": [VERDICTS[row.verdict] for row in rows],
        "ours": [row.ours for row in rows],
        "theirs": [row.theirs for row in rows],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [f"| {' | '.join(filled)} |", f"|{'---|' * len(filled)}"]
    for cells in zip(*filled.values(), strict=True):
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def recorded(folder: Path) -> list[tuple[str, Recorded]]:
    """Every benchmark that left a file of this kind, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path.stem, read(path)))
        except KeyError:
            continue  # older benchmarks, which docs/backbones.md shows
    return found


if __name__ == "__main__":
    PAGE.write_text(page(recorded(HERE)), encoding="utf-8")
    print(PAGE)
