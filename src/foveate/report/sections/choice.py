"""The choice: which models were measured and raced, and why one of them won."""

from foveate.report.axes import whole_percent
from foveate.report.folder import Folder, dig, listed, rows
from foveate.report.html import (
    Child,
    Html,
    interval,
    is_number,
    join,
    missing,
    percent,
    scaled,
    short,
    table,
    tag,
)
from foveate.report.plots import Point, Series, curves, trade

Row = dict


def section(folder: Folder) -> Html:
    """The race, or that there was none."""
    candidates = rows(folder.get("race", "candidates"))
    if not candidates:
        return missing("No model has been chosen yet.")
    return join([_words(folder, candidates), _plots(folder, candidates), _table(candidates)])


def _words(folder: Folder, candidates: list[Row]) -> Html:
    winner = next((row for row in candidates if row.get("chosen")), None)
    kept = [row for row in candidates if row.get("kept")]
    asked, model = folder.get("asked", "latency_ms"), folder.get("asked", "model")
    left_out = listed(folder.get("race", "left_out"))
    short_of = f" The budget is too short to race {', '.join(map(short, left_out))}."
    if len(candidates) == 1:
        why = ": it was asked for by name." if model not in (None, "auto") else "."
        only = f"{short(candidates[0].get('name'))} is the only candidate{why}"
        return tag("p", only + short_of * bool(left_out))
    limit = f"; {len(kept)} of them meet the {asked:g} ms asked for" if is_number(asked) else ""
    won = f" {short(winner.get('name'))} won." if winner else " The race is not over yet."
    said = (
        f"{len(candidates)} models were measured on this machine{limit}. Those kept "
        "race by successive halving: all train a little, the better half goes on and trains "
        "longer." + won + short_of * bool(left_out)
    )
    return tag("p", said)


def _latency(row: Row) -> float | None:
    median = dig(row, "latency_ms", "median")
    return median if is_number(median) and median > 0 else None


def _plots(folder: Folder, candidates: list[Row]) -> Html | None:
    raced = [
        Point(str(row.get("name")), cost, row["top1"], "b" if row.get("chosen") else "a")
        for row in candidates
        if (cost := _latency(row)) and is_number(row.get("top1"))
    ]
    outside = [
        (str(row.get("name")), cost)
        for row in candidates
        if (cost := _latency(row)) and not is_number(row.get("top1"))
    ]
    asked = folder.get("asked", "latency_ms")
    budget = asked if is_number(asked) and asked > 0 else None
    keys = [("b", "chosen"), ("a", "raced; dashes: the Pareto front")]
    if outside:
        keys.append(("x", "not raced"))
    if budget:
        keys.append(("l", f"{budget:g} ms asked for"))
    plot = trade("Accuracy against latency", raced, too_slow=outside, budget=budget, keys=keys)
    return tag("div", plot, _rungs(candidates), class_="plots") if plot else None


def _rungs(candidates: list[Row]) -> Html | None:
    """Accuracy over the minutes that each candidate was given."""
    series = []
    for row in candidates:
        minutes, spent = [], 0.0
        rungs = [r for r in rows(row.get("rungs")) if is_number(r.get("top1"))]
        for rung in rungs:
            spent += rung["minutes"] if is_number(rung.get("minutes")) else 1.0
            minutes.append(spent)
        colour = "b" if row.get("chosen") else "a"
        series.append(Series(str(row.get("name")), minutes, [r["top1"] for r in rungs], colour))
    drawn = curves(
        "The rungs of the race",
        series,
        x_name="minutes of training, summed",
        y_name="top-1",
        y_format=whole_percent,
        keys=[("b", "chosen"), ("a", "the others")],
    )
    return drawn if any(len(s.x) > 1 for s in series) else None


def _table(candidates: list[Row]) -> Html:
    head: list[Child] = ["model", "outcome", "top-1", "latency", "parameters", "MACs", "rungs"]

    def line(row: Row) -> list[Child]:
        rungs = [percent(rung.get("top1")) for rung in rows(row.get("rungs"))]
        cells: list[Child] = [
            short(row.get("name"), 40),
            _outcome(row),
            percent(row.get("top1")),
            interval(row.get("latency_ms")),
            scaled(row.get("params")),
            scaled(row.get("macs")),
            " → ".join(rungs) or "–",
        ]
        return ["*", *cells] if row.get("chosen") else cells

    def order(row: Row) -> tuple[bool, float, float]:
        gain = row["top1"] if is_number(row.get("top1")) else -1.0
        return not row.get("chosen"), -gain, _latency(row) or 0.0

    lines = [line(row) for row in sorted(candidates, key=order)]
    return table(head, lines, label="Candidates", text=2)


def _outcome(row: Row) -> Child:
    if row.get("chosen"):
        return "chosen"
    if row.get("why"):
        return tag("span", short(row["why"], 90), class_=None if row.get("kept") else "bad")
    return "raced" if rows(row.get("rungs")) else "not raced"
