"""How a benchmark's figures are written down, so that one page can show them all.

A benchmark is a script that compares Foveate with peers and leaves a JSON file of its own name
beside it. The file says everything that a reader needs; `page.py` makes docs/benchmarks.md of
all such files and knows none of them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from foveate import compiled
from foveate.measure import Ratio, Timing, machine

Interval = tuple[float, float, float]
"""A median and the bounds of its interval."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison.

    Args:
        what: what was done, such as `convnext_atto at 224, batch 32: training step`.
        peer: whose time is compared, with the settings that matter, such as `timm, channels_last`.
        ratio: the peer's time over ours, median and 99% interval: above 1 ours is faster.
        mark: the ratio to be reached, or None where the row only informs.
        ours, theirs: the figures behind the ratio with their units, such as `41 images/s`.
        note: what else a reader should know, such as where the roof is.
    """

    what: str
    peer: str
    ratio: Interval
    mark: float | None = None
    ours: str = ""
    theirs: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        """Against the mark: `met`, `missed`, or `open` where the interval holds it; without a
        mark: `faster`, `slower` or `even`."""
        _, low, high = self.ratio
        goal = 1.0 if self.mark is None else self.mark
        above, below, between = (
            ("faster", "slower", "even") if self.mark is None else ("met", "missed", "open")
        )
        return above if low >= goal else below if high < goal else between


@dataclass
class Benchmark:
    """What a benchmark found, written after every row, so that a stopped one keeps its rows.

    Args:
        script: the benchmark's `__file__`; the JSON gets its name.
        title: a heading.
        command: what a person types to do it again.
        says: what was compared and how, in Markdown: shapes, dtype, threads, allocator, what
            interleaves with what.
        rows: what was found.
        keep: begin with the rows that were recorded before; new ones replace those of the same
            `what` and `peer`.
    """

    script: str | Path
    title: str
    command: str
    says: str
    rows: list[Row] = field(default_factory=list)
    keep: bool = False

    def __post_init__(self) -> None:
        if self.keep and self.path.exists():
            self.rows = read(self.path).rows

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return Path(self.script).with_suffix(".json")

    def add(self, row: Row) -> None:
        """Take a row in, say it, and write all of them down."""
        same = [i for i, r in enumerate(self.rows) if (r.what, r.peer) == (row.what, row.peer)]
        if same:
            self.rows[same[0]] = row
        else:
            self.rows.append(row)
        ratio, mark = show_ratio(row.ratio), "" if row.mark is None else f" of {row.mark:g}x"
        print(f"{row.what} | {row.peer}: {ratio}{mark}, {row.verdict}", flush=True)
        self.write()

    def write(self) -> Path:
        """Write the file."""
        found = {
            "title": self.title,
            "command": self.command,
            "says": self.says,
            "machine": machine(),
            "rows": [asdict(row) for row in self.rows],
        }
        self.path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return self.path


@dataclass
class Sheet:
    """What a benchmark found that is no ratio: cells under columns of its own.

    Args:
        script, title, command, says: as a `Benchmark`'s.
        columns: headings.
        rows: a cell for each column.
        notes: a line each, below the table.
        facts: what the cells were made of, JSON-ready.
        machine: where it was found: here, unless it was read.
    """

    script: str | Path
    title: str
    command: str
    says: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: Any = None
    machine: dict[str, Any] = field(default_factory=machine)

    def add(self, *cells: str) -> None:
        """Take a row in, say it, and write all of them down."""
        self.rows.append(list(cells))
        print(" | ".join(cells), flush=True)
        self.write()

    def write(self) -> Path:
        """Write the file, of the script's name."""
        path = Path(self.script).with_suffix(".json")
        found = {name: value for name, value in asdict(self).items() if name != "script"}
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return path


@dataclass(frozen=True)
class Recorded:
    """What a file holds."""

    title: str
    command: str
    says: str
    machine: dict[str, Any]
    rows: list[Row]


def read(path: Path) -> Recorded:
    """Read what `Benchmark.write` wrote.

    Raises: KeyError if the file is not of this kind.
    """
    found = json.loads(path.read_text("utf-8"))
    rows = [Row(**{**row, "ratio": tuple(row["ratio"])}) for row in found["rows"]]
    return Recorded(found["title"], found["command"], found["says"], found["machine"], rows)


def read_sheet(path: Path) -> Sheet:
    """Read what `Sheet.write` wrote.

    Raises: KeyError if the file is not of this kind.
    """
    found = json.loads(path.read_text("utf-8"))
    return Sheet(path, **{f.name: found[f.name] for f in fields(Sheet) if f.name != "script"})


def facts_before(script: str) -> Any:
    """What the last run of a script found, as its `Sheet.facts`; None before the first.

    Args:
        script: `__file__` of the script.
    """
    path = Path(script).with_suffix(".json")
    return read_sheet(path).facts if path.exists() else None


def of_this_processor(script: str, title: str) -> tuple[Path, str]:
    """Where the figures of such a processor are kept, and their heading.

    Marks of speed were set with AVX-512; what is measured without it stands beside that.

    Args:
        script: `__file__` of the script.
        title: the heading of what is measured with AVX-512.
    """
    path = Path(script)
    if compiled.level() == "x86-64-v4":
        return path, title
    return path.with_stem(f"{path.stem}_avx2"), f"{title} without AVX-512"


def interval(found: Ratio | Timing) -> Interval:
    """A measured ratio or time as a row holds it."""
    return found.median, found.low, found.high


def geometric_mean(ratios: Sequence[Interval]) -> Interval:
    """The geometric mean of independent ratios; its interval adds theirs in quadrature."""
    logs = [[math.log(value) for value in ratio] for ratio in ratios]
    middle = sum(m for m, _, _ in logs) / len(logs)
    below = math.sqrt(sum((m - low) ** 2 for m, low, _ in logs)) / len(logs)
    above = math.sqrt(sum((high - m) ** 2 for m, _, high in logs)) / len(logs)
    return math.exp(middle), math.exp(middle - below), math.exp(middle + above)


def show_ratio(ratio: Interval) -> str:
    """`2.13x (2.05 to 2.20)`."""
    median, low, high = ratio
    return f"{median:.2f}x ({low:.2f} to {high:.2f})"


def show_points(points: Interval) -> str:
    """`0.25 (-0.10 to 0.60)`."""
    middle, low, high = points
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
