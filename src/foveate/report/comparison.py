"""The page of a comparison: mixers at equal cost, accuracy against latency."""

from typing import Any

from foveate.measure import machine_line
from foveate.report.html import Child, Html, document, interval, percent, scaled, table, tag
from foveate.report.plots import Point, trade


def comparison_page(facts: dict[str, Any]) -> Html:
    """The page of what `foveate.compare.compare` returned."""
    asked = facts["asked"]
    unit = "multiply-adds" if asked["equal"] == "macs" else "parameters"
    points = [
        Point(row["name"], row["latency_ms"]["median"], row["top1"], "b" if i == 0 else "a")
        for i, row in enumerate(facts["mixers"])
    ]
    rows: list[list[Child]] = [
        [
            row["name"],
            f"{percent(row['top1'])} ({percent(row['interval'][0])} to "
            f"{percent(row['interval'][1])})",
            _behind(row),
            interval(row["latency_ms"]),
            scaled(row["params"]),
            scaled(row["macs"]),
            row["width"],
        ]
        for row in facts["mixers"]
    ]
    head_row: list[Child] = [
        "mixer",
        "top-1",
        "behind the best",
        "latency",
        "parameters",
        "MACs",
        "width",
    ]
    said = (
        f"Each mixer stands in the same skeleton, its width chosen so that all have about "
        f"{scaled(facts['budget'])} {unit}, and is trained {asked['seeds']} times for "
        f"{asked['epochs']:g} epochs on {asked['source']} at {facts['size']} pixels by one recipe. "
        "Intervals are Student's, 95%; a mixer is worse than the best only if the interval of the "
        "difference over the same seeds leaves out zero."
    )
    return document(
        "Token mixers compared, by Foveate",
        tag(
            "header",
            tag("h1", f"{len(rows)} token mixers at equal {unit}"),
            tag("p", said),
            tag(
                "p",
                f"{machine_line(facts['machine'])}.",
                class_="missing",
            ),
        ),
        tag(
            "main",
            tag(
                "section",
                tag("h2", "Accuracy against latency"),
                tag(
                    "div",
                    trade("One image, eager", points, keys=[("b", "best"), ("a", "others")]),
                    class_="plots",
                ),
                table(head_row, rows, label="Mixers"),
            ),
        ),
        tag("footer", "Written by Foveate."),
    )


def _behind(row: dict[str, Any]) -> str:
    if row["verdict"] == "best":
        return "the best"
    lost = row["behind"]
    figure = f"{lost['points']:.1f} points ({lost['low']:.1f} to {lost['high']:.1f})"
    return figure if row["verdict"] == "worse" else f"cannot be told: {figure}"
