"""The page of a guided compression: the front, the choice explained, what each part costs alone."""

from typing import Any

from foveate.measure import machine_line
from foveate.report.html import (
    Child,
    Html,
    document,
    folded,
    interval,
    number,
    percent,
    short,
    table,
    tag,
)
from foveate.report.plots import Bar, Point, bars, trade

MOST_PARTS = 12
"""Parts in a plot of sensitivities: those that cost most."""
EDITS = {
    "Remove": "Channels removed",
    "Simulate": "Computed in 8-bit integers",
    "Store": "Weights stored in 4 bits",
    "Fold": "Branches merged",
}

Row = dict[str, Any]


def guidance_page(facts: dict[str, Any], title: str) -> Html:
    """The page of what `foveate.guidance.guide` found.

    Args:
        facts: of `Guided`.
        title: names the model.
    """
    sections = [
        ("The front", [tag("div", _plot(facts), class_="plots"), _front(facts)]),
        ("What each part costs alone", _sensitivities(facts)),
        ("All that was measured", folded(f"{len(facts['trials'])} compositions", _all(facts))),
    ]
    first, *rest = facts["words"]
    return document(
        f"{title} compressed, by Foveate",
        tag(
            "header",
            tag("p", f"{title}, compressed with guidance", class_="over"),
            tag("h1", first),
            [tag("p", sentence) for sentence in rest],
            tag(
                "p",
                f"{machine_line(facts['machine'])}. Programs of one image in "
                f"{facts['runtime']}; {facts['seconds']:.0f} seconds were spent.",
                class_="missing",
            ),
        ),
        tag("main", [tag("section", tag("h2", name), body) for name, body in sections if body]),
        tag("footer", "Written by Foveate."),
    )


# ---------------------------------------------------------------- what rows say


def milliseconds(row: Row) -> float:
    """Of a trial; without end where it could not be measured."""
    return row["figures"]["latency_ms"]["median"] if row["figures"] else float("inf")


def lost(row: Row) -> float:
    """Points that a trial lost; what seems gained counts as nothing."""
    return max(row["figures"]["lost"]["points"], 0.0) if row["figures"] else float("inf")


def points(found: dict[str, float]) -> str:
    """Points with their interval: 0.35 (-0.10 to 0.80)."""
    return f"{found['points']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def right(facts: dict[str, Any]) -> str:
    """What the share of images that are right is called."""
    return "top-1" if facts["asked"]["by"] == "accuracy" else "same label"


def on_the_front(facts: dict[str, Any]) -> list[Row]:
    """The rows of the front, the original's and the chosen one's, the fastest first."""
    rows = facts["trials"]
    shown = [row for row in rows if row["front"] or row["chosen"] or row is rows[0]]
    return sorted(shown, key=milliseconds)


# ---------------------------------------------------------------- sections


def _plot(facts: dict[str, Any]) -> Child:
    measured = [row for row in facts["trials"] if row["figures"]]
    measured.sort(key=lambda row: (row["chosen"], row["front"]))  # what is drawn last is on top
    keys = [("b", "chosen" if facts["met"] else "nearest"), ("c", "as it was")]
    keys += [("a", "on the front"), ("n", "others"), ("l", "asked for")]
    before = facts["trials"][0]["figures"]["right"]
    front = sorted((row for row in measured if row["front"]), key=milliseconds)
    return trade(
        f"{right(facts)} against latency",
        [_point(row, facts) for row in measured],
        budget=facts["asked"]["latency_ms"],
        floor=before - facts["asked"]["guard"] / 100,
        front=[_point(row, facts) for row in front],
        gain_name=right(facts),
        keys=keys,
    )


def _point(row: Row, facts: dict[str, Any]) -> Point:
    return Point(row["name"], milliseconds(row), row["figures"]["right"], _kind(row, facts))


def _kind(row: Row, facts: dict[str, Any]) -> str:
    if row["chosen"]:
        return "b"
    if row is facts["trials"][0]:
        return "c"
    return "a" if row["front"] else "n"


def _front(facts: dict[str, Any]) -> Child:
    return _table(facts, on_the_front(facts), "The front")


def _all(facts: dict[str, Any]) -> Child:
    measured = [row for row in facts["trials"] if row["figures"]]
    failed: list[list[Child]] = [
        [row["name"], row["why"]] for row in facts["trials"] if not row["figures"]
    ]
    return [
        _table(facts, sorted(measured, key=milliseconds), "All compositions"),
        table(["not made", "why"], failed, label="What could not be made", text=2)
        if failed
        else None,
    ]


def _table(facts: dict[str, Any], rows: list[Row], label: str) -> Html:
    original = milliseconds(facts["trials"][0])
    cells: list[list[Child]] = []
    for row in rows:
        figures = row["figures"]
        cells.append(
            [
                *(["*"] if row["chosen"] else []),
                row["name"],
                interval(figures["latency_ms"]),
                f"{original / milliseconds(row):.2f}x",
                points(figures["lost"]),
                percent(figures["right"], 2),
                f"{figures['macs'] / 1e6:.1f} M",
                f"{figures['bytes'] / 1e6:.2f} MB",
            ]
        )
    head: list[Child] = ["composition", "latency", "faster", "points lost", right(facts)]
    return table([*head, "MACs", "size"], cells, label=label)


def _sensitivities(facts: dict[str, Any]) -> Child:
    parts: list[Child] = []
    tables: list[Child] = []
    for edit, words in EDITS.items():
        rows = [row for row in facts["sensitivities"] if row["edit"] == edit]
        known = [row for row in rows if row["lost"]]
        known.sort(key=lambda row: -row["divergence"])
        if len(known) > 1:
            drawn = [
                Bar(f"{short(row['part'], 40)}: {row['how']}", row["divergence"], None, None, "a")
                for row in known[:MOST_PARTS]
            ]
            parts.append(bars(f"{words}: how far answers move", drawn, "nats"))
        if rows:
            tables.append(folded(f"{words}: {len(rows)} rows", _parts(rows, words)))
    said = "The Kullback-Leibler divergence of the answers from the original's, of one part alone."
    return [tag("p", said), tag("div", parts, class_="plots"), tables]


def _parts(rows: list[Row], words: str) -> Html:
    cells: list[list[Child]] = [
        [
            row["part"],
            row["how"],
            number(row["divergence"]),
            points(row["lost"]) if row["lost"] else row["why"],
        ]
        for row in rows
    ]
    return table(["part", "how much", "nats", "points lost"], cells, label=words, text=2)
