"""What the claims found, as a page: the paper's figure beside ours."""

from typing import Any

from foveate.catalog import paper
from foveate.measure import machine_line

VERDICTS = ("holds", "fails", "inconclusive")
INTRODUCTION = """\
# Claims

What papers claim, measured by functions that anyone can run:
`foveate reproduce SLUG`. A verdict follows from an interval, never from a point:
a claim **holds** or **fails** only if the whole interval lies on one side of its
line, and is **inconclusive** otherwise. These are verdicts on the machine named
beside them, at the size that it can afford; they do not judge the papers on theirs.
"""


def claims_page(rows: list[dict[str, Any]]) -> str:
    """The last row of each paper, as Markdown."""
    last = {row["slug"]: row for row in rows}
    ordered = [last[slug] for slug in sorted(last)]
    counts = [f"{sum(r['verdict'] == v for r in ordered)} {v}" for v in VERDICTS]
    parts = [INTRODUCTION, f"{len(ordered)} claims: {', '.join(counts)}.\n"]
    parts.append("| paper | claim, as tested | the paper's figure | ours | verdict |")
    parts.append("|---|---|---|---|---|")
    parts += [_line(row) for row in ordered]
    parts += [_section(row) for row in ordered]
    return "\n".join(parts)


def figure(row: dict[str, Any]) -> str:
    """The figure with its interval and unit."""
    low, high = row["interval"]
    return f"{row['figure']:.3g}{row['unit']} ({low:.3g} to {high:.3g})"


def _line(row: dict[str, Any]) -> str:
    cells = [
        f"[{row['slug']}](#{row['slug']})",
        row["says"],
        row["paper"],
        figure(row),
        f"**{row['verdict']}**",
    ]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _section(row: dict[str, Any]) -> str:
    details = "\n".join(
        f"- {name.replace('_', ' ')}: {_words(v)}" for name, v in row["details"].items()
    )
    return (
        f"\n## {row['slug']}\n\n{paper(row['slug']).title}.\n\n{row['says']}\n\n"
        f"**{row['verdict']}**: {figure(row)}. The paper: {row['paper']}.\n\n{row['note']}\n\n"
        f"{details}\n\n"
        f"{machine_line(row['machine'])}, seed {row['asked']['seed']}, "
        f"{row['minutes']:.1f} minutes."
    )


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(v)}" for name, v in value.items())
    if isinstance(value, list):
        return ", ".join(_words(v) for v in value)
    return f"{value:.3g}" if isinstance(value, float) else f"{value}"
