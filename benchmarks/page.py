"""Write docs/benchmarks.md from what the benchmarks beside this file have left.

python benchmarks/page.py
"""

from collections import Counter
from contextlib import suppress
from pathlib import Path

from results import Recorded, Row, Sheet, read, read_sheet, show_ratio

from foveate.measure import machine_line

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
INTRODUCTION = """\
# Benchmarks

*Made by `python benchmarks/page.py` from what the benchmarks left; not edited by hand.*

Foveate beside its peers, on one machine, in turns, so that what disturbs one side disturbs all.
A ratio is the peer's time over ours: above 1 ours is faster. Its interval holds 99%. A mark is the
ratio that was to be reached: it is **met** where the whole interval stands above it, *missed* where
the whole interval stands below, open in between. Losses stay in. What is no ratio stands in tables
of its own.
"""
PACKAGES = ("torch", "timm", "torchvision", "openvino", "onnxruntime")
VERDICTS = {
    "met": "**met**",
    "missed": "*missed*",
    "open": "open",
    "faster": "faster",
    "slower": "*slower*",
    "even": "even",
}


def page(found: list[tuple[str, Recorded | Sheet]]) -> str:
    """The page, as Markdown.

    Args:
        found: each benchmark's name and what it left.
    """
    ratios = [(name, one) for name, one in found if isinstance(one, Recorded)]
    parts = [INTRODUCTION, summary(ratios)]
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


def section(name: str, recorded: Recorded | Sheet) -> str:
    """What was compared, where, and the rows."""
    if isinstance(recorded, Sheet):
        columns: list[list[str]] = [list(cells) for cells in zip(*recorded.rows, strict=True)]
        rows = table(dict(zip(recorded.columns, columns, strict=True)))
        notes = [f"- {note}" for note in recorded.notes]
    else:
        rows = table(comparison(recorded.rows))
        notes = [f"- {row.what}, {row.peer}: {row.note}" for row in recorded.rows if row.note]
    machine = recorded.machine
    on = [machine["gpu"]] if machine.get("gpu") else []
    on += [machine["system"], machine_line(machine, PACKAGES)]
    lines = [
        f'<a id="{name}"></a>\n',
        f"## {recorded.title}\n",
        f"{recorded.says}\n",
        f"`{recorded.command}`, on {', '.join(on)}.\n",
        *rows,
    ]
    return "\n".join(lines + (["", *notes] if notes else [])) + "\n"


def comparison(rows: list[Row]) -> dict[str, list[str]]:
    """The cells of ratios, by column."""
    return {
        "what": [row.what for row in rows],
        "peer": [row.peer for row in rows],
        "ratio": [show_ratio(row.ratio) for row in rows],
        "mark": ["" if row.mark is None else f"{row.mark:g}x" for row in rows],
        "verdict": [VERDICTS[row.verdict] for row in rows],
        "ours": [row.ours for row in rows],
        "theirs": [row.theirs for row in rows],
    }


def table(columns: dict[str, list[str]]) -> list[str]:
    """Cells by column; columns that nobody fills are left out."""
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [f"| {' | '.join(filled)} |", f"|{'---|' * len(filled)}"]
    for cells in zip(*filled.values(), strict=True):
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def recorded(folder: Path) -> list[tuple[str, Recorded | Sheet]]:
    """Every benchmark that left a file of these kinds, by name.

    Others are those of older benchmarks, which docs/backbones.md shows.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        for reader in (read_sheet, read):
            with suppress(KeyError):
                found.append((path.stem, reader(path)))
                break
    return found


if __name__ == "__main__":
    PAGE.write_text(page(recorded(HERE)), encoding="utf-8")
    print(PAGE)
