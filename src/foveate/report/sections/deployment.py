"""What compression cost and gained, format by format."""

from foveate.report.folder import Folder, dig, rows
from foveate.report.html import (
    Child,
    Html,
    interval,
    is_number,
    join,
    missing,
    number,
    percent,
    scaled,
    short,
    table,
    tag,
)
from foveate.report.plots import Bar, bars


def section(folder: Folder) -> Html:
    """A row per exported format, or that nothing is exported yet."""
    formats = rows(folder.get("deploy", "formats"))
    if not formats:
        return missing("Nothing has been exported yet.")
    parts = [_words(folder), _plot(formats), _table(formats), _absent(folder), _tested(folder)]
    return join(parts)


def _words(folder: Folder) -> Html:
    guard = folder.get("deploy", "guard")
    if not is_number(guard):
        guard = folder.get("asked", "guard")
    limit = "must keep its accuracy"
    if is_number(guard):
        points = "point" if guard == 1 else "points"
        limit = f"may lose at most {guard:g} {points} of top-1"
    said = (
        f"A format {limit}; of those that pass, the fastest on this machine is chosen. "
        "Parity compares a format's logits with the trained model's."
    )
    return tag("p", said)


def _plot(formats: list[dict]) -> Html | None:
    measured = [row for row in formats if is_number(dig(row, "latency_ms", "median"))]
    drawn = bars(
        "Latency of one image",
        [
            Bar(
                short(row.get("name"), 40),
                row["latency_ms"]["median"],
                _number(dig(row, "latency_ms", "low")),
                _number(dig(row, "latency_ms", "high")),
                "b" if row.get("chosen") else "a" if row.get("passed") else "n",
            )
            for row in sorted(measured, key=lambda row: row["latency_ms"]["median"])
        ],
        "ms",
        [("b", "chosen"), ("a", "passed the guard"), ("n", "did not")],
    )
    return tag("div", drawn, class_="plots") if drawn else None


def _number(value: object) -> float | None:
    return value if is_number(value) else None


def _table(formats: list[dict]) -> Html:
    head: list[Child] = [
        "format", "guard", "size", "latency", "top-1", "max error", "cosine", "agreement",
    ]  # fmt: skip

    def line(row: dict) -> list[Child]:
        cells: list[Child] = [
            short(row.get("name"), 40),
            _guard(row),
            scaled(row.get("bytes"), unit="B"),
            interval(row.get("latency_ms")),
            percent(row.get("top1"), 2),
            number(dig(row, "parity", "max_error"), 2),
            number(dig(row, "parity", "cosine"), 5),
            percent(dig(row, "parity", "agreement")),
        ]
        return ["*", *cells] if row.get("chosen") else cells

    return table(head, [line(row) for row in formats], label="Formats", text=2)


def _guard(row: dict) -> Html:
    why = short(row.get("why") or "", 90)
    if row.get("chosen"):
        return tag("span", "passed, chosen", class_="good")
    if row.get("passed"):
        return tag("span", why or "passed", class_="good")
    return tag("span", why or "did not pass", class_="bad")


def _absent(folder: Folder) -> Html | None:
    absent = folder.get("deploy", "absent")
    if not isinstance(absent, dict) or not absent:
        return None
    reasons = "; ".join(f"no {short(name, 40)}, {short(why, 90)}" for name, why in absent.items())
    return tag("p", f"Not made: {reasons}.")


def _tested(folder: Folder) -> Html | None:
    before, after = folder.get("test", "trained", "top1"), folder.get("test", "exported", "top1")
    if not is_number(before) or not is_number(after):
        return None
    change = f"{100 * (after - before):+.2f}".replace("-", "−")
    said = (
        f"On the test split: {percent(before, 2)} as trained, {percent(after, 2)} as exported "
        f"({change} points)."
    )
    return tag("p", said)
