"""The page of a profile: where the time goes, how near to the roof, and what differs."""

from typing import Any

from foveate.measure import machine_line
from foveate.report.axes import axes, place, span, whole_percent
from foveate.report.html import (
    Child,
    Html,
    document,
    folded,
    interval,
    number,
    percent,
    scaled,
    table,
    tag,
)
from foveate.report.plots import Bar, bars, figure

COLOURS = ("a", "b", "c", "d")
MOST_LAYERS = 400
LEAST_SHARE = 0.005  # of the time, for a sort of layer to be worth a line


def profile_page(facts: dict[str, Any], words: list[str]) -> Html:
    """The page of what `foveate.profile.profile` returned.

    Args:
        facts: as it returns them.
        words: sentences that explain them.
    """
    names = [row["name"] for row in facts["models"]]
    title = " against ".join(names)
    sections = [
        ("Runtimes", _runtimes(facts)),
        ("Where the time goes", [_sorts(facts), _differences(facts)]),
        (
            "Under the roof",
            tag("div", _gap(facts), map(_waterline, facts["models"]), class_="plots"),
        ),
        ("Costs", _costs(facts)),
        ("How it grows", _growth(facts)),
        ("Every layer", [_layers(row) for row in facts["models"]]),
    ]
    main = [tag("section", tag("h2", name), body) for name, body in sections if body]
    header = [
        tag("p", f"{facts['resolution']} pixels, batch {facts['batch']}", class_="kicker"),
        tag("h1", title),
        [tag("p", sentence) for sentence in words],
        tag(
            "p",
            f"{machine_line(facts['machine'])}. Ceilings measured "
            f"{facts['ceilings']['date'][:10]}: {facts['ceilings']['flops'] / 1e9:,.0f} GFLOP/s "
            f"({facts['ceilings']['by']}), "
            f"{facts['ceilings']['bytes'] / 1e9:,.1f} GB/s.",
            class_="missing",
        ),
    ]
    return document(
        f"{title}: a profile by Foveate",
        tag("header", header),
        tag("main", main),
        tag("footer", "Written by Foveate."),
    )


# ---------------------------------------------------------------- sections


def _runtimes(facts: dict[str, Any]) -> Child:
    ratios = {(r["model"], r["runtime"]): r for r in facts["ratios"]}
    first = facts["models"][0]["name"]
    rows: list[list[Child]] = []
    drawn = []
    for model, colour in zip(facts["models"], COLOURS * 9, strict=False):
        for runtime, times in model["runtimes"].items():
            ratio = ratios.get((model["name"], runtime))
            noise = "too noisy to tell" if times["noisy"] else ""
            said = _ratio_words(ratio, first) if ratio else ""
            rows.append([runtime, model["name"], interval(times), said or noise])
            bar = Bar(
                f"{runtime}: {model['name']}", times["median"], times["low"], times["high"], colour
            )
            drawn.append(bar)
        for runtime, why in model["left_out"].items():
            rows.append([runtime, model["name"], "–", f"left out: {why}"])
    order = {name: i for i, name in enumerate(dict.fromkeys(row[0] for row in rows))}
    rows.sort(key=lambda row: order[row[0]])
    drawn.sort(key=lambda bar: order[bar.name.split(":")[0]])
    keys = [(c, m["name"]) for m, c in zip(facts["models"], COLOURS, strict=False)]
    return [
        tag("div", bars("Time of a batch", drawn, "ms", keys), class_="plots"),
        table(["runtime", "model", "time", "against the first"], rows, label="Runtimes", text=2),
    ]


def _ratio_words(ratio: dict[str, Any], first: str) -> str:
    span_words = f"{ratio['median']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"
    if ratio["verdict"] == "inconclusive":
        return f"as fast as {first}, as far as can be told: {span_words}"
    return f"{span_words} as fast as {first}"


def _sorts(facts: dict[str, Any]) -> Child:
    parts = []
    for model, colour in zip(facts["models"], COLOURS * 9, strict=False):
        rows = [
            Bar(f"{s['sort']} ({s['layers']})", s["milliseconds"], None, None, colour)
            for s in model["sorts"]
            if s["share"] > LEAST_SHARE
        ]
        parts.append(bars(f"{model['name']}: milliseconds by sort of layer", rows, "ms"))
    return tag("div", parts, class_="plots")


def _differences(facts: dict[str, Any]) -> Child:
    models = facts["models"]
    tables = [{s["sort"]: s for s in model["sorts"]} for model in models]
    sorts = sorted(
        {sort for rows in tables for sort in rows if rows[sort]["share"] > LEAST_SHARE},
        key=lambda sort: -max(rows[sort]["milliseconds"] for rows in tables if sort in rows),
    )
    head: list[Child] = ["sort of layer"]
    for model in models:
        head += [f"{model['name']}, ms", "GFLOP", "of its roof"]
    rows: list[list[Child]] = []
    for sort in sorts:
        row: list[Child] = [sort]
        for found in tables:
            s = found.get(sort)
            row += (
                [number(s["milliseconds"]), number(s["flops"] / 1e9), percent(s["efficiency"], 0)]
                if s
                else ["–", "–", "–"]
            )
        rows.append(row)
    return table(head, rows, label="Time by sort of layer")


def _gap(facts: dict[str, Any]) -> Child:
    """The efficiency gap: what the arithmetic alone would take, and what it does take."""
    rows = []
    for model in facts["models"]:
        rows += [
            Bar(f"{model['name']}: at the peak", model["ideal_milliseconds"], None, None, "a"),
            Bar(
                f"{model['name']}: perfect kernels",
                model["attainable_milliseconds"],
                None,
                None,
                "c",
            ),
            Bar(f"{model['name']}: as it is", model["milliseconds"], None, None, "b"),
        ]
    keys = [("a", "ideal"), ("c", "waterline"), ("b", "actual")]
    return bars("Efficiency gap", rows, "ms", keys)


def _waterline(model: dict[str, Any]) -> Child:
    """A column a layer: as wide as its arithmetic, as high as the share of the peak that it
    reached (filled) and that its roof allows (outline)."""
    layers = [layer for layer in model["layers"] if layer["flops"] and layer["milliseconds"]]
    whole = sum(layer["flops"] for layer in layers)
    if not whole:
        return None
    peak = model["flops"] / model["ideal_milliseconds"]
    frame = axes(
        (0, 1),
        span([0, 1], zero=True),
        "share of the arithmetic",
        "share of the peak",
        x_format=whole_percent,
        y_format=whole_percent,
    )
    marks: list[Child] = []
    at = 0.0
    for layer in layers:
        wide = layer["flops"] / whole
        reached = layer["flops"] / layer["milliseconds"] / peak
        allowed = layer["flops"] / layer["least_milliseconds"] / peak
        said = f"{layer['name']}, {layer['sort']}: {percent(reached)} of {percent(allowed)}"
        for share, style in ((allowed, "column b"), (reached, "column a")):
            marks.append(
                tag(
                    "rect",
                    tag("title", said),
                    x=place(frame.x(at)),
                    y=place(frame.y(min(share, 1.06))),
                    width=f"{max(frame.x(at + wide) - frame.x(at), 0.2):.2f}",
                    height=place(max(frame.y(0) - frame.y(min(share, 1.06)), 0)),
                    class_=style,
                )
            )
        at += wide
    for level in (model["most"], model["efficiency"]):
        y = place(frame.y(min(level, 1.06)))
        marks.append(tag("line", x1=frame.x(0), x2=frame.x(1), y1=y, y2=y, class_="limit"))
    title = f"Waterline of {model['name']}"
    keys = [("a", "reached"), ("b", "allowed by the roof")]
    return figure(title, frame.draw(marks, description=title), keys)


def _costs(facts: dict[str, Any]) -> Child:
    rows: list[list[Child]] = [
        [
            model["name"],
            scaled(model["params"]),
            ("at least " if model["uncounted"] else "") + scaled(model["macs"]),
            scaled(model["activations"]),
            scaled(model["bytes"], unit="B"),
            scaled(model["peak_bytes"], unit="B"),
            interval(model["training"]) if "training" in model else "–",
        ]
        for model in facts["models"]
    ]
    notes = [
        tag("p", f"{m['name']} on images: {_spread_words(m['spread'])}.")
        for m in facts["models"]
        if "spread" in m
    ]
    notes += [
        tag(
            "p",
            f"Not counted in {m['name']}: "
            + ", ".join(f"{k} ({v})" for k, v in m["uncounted"].items()),
        )
        for m in facts["models"]
        if m["uncounted"]
    ]
    head: list[Child] = [
        "model",
        "parameters",
        "MACs",
        "activations",
        "moved",
        "peak memory",
        "training step",
    ]
    return [table(head, rows, label="Costs"), notes]


def _spread_words(spread: dict[str, Any]) -> str:
    if spread["low"] == spread["high"]:
        return f"{scaled(spread['median'])} MACs for each of {spread['images']}"
    return (
        f"a median of {scaled(spread['median'])} MACs, nine of ten between "
        f"{scaled(spread['low'])} and {scaled(spread['high'])}, over {spread['images']}"
    )


def _growth(facts: dict[str, Any]) -> Child:
    rows: list[list[Child]] = []
    for model in facts["models"]:
        for name, found in model.get("growth", {}).items():
            power = found["exponent"]
            said = (
                f"{power['power']:.2f} ({power['low']:.2f} to {power['high']:.2f})"
                if power
                else "–"
            )
            points = ", ".join(f"{x}: {number(y)} ms" for x, y in found["milliseconds"].items())
            rows.append([model["name"], name, said, points])
    head: list[Child] = ["model", "with", "exponent of the time", "measured"]
    return table(head, rows, label="Growth", text=2) if rows else None


def _layers(model: dict[str, Any]) -> Child:
    rows: list[list[Child]] = [
        [
            layer["name"] or "(itself)",
            layer["sort"],
            number(layer["milliseconds"]),
            number(layer["flops"] / 1e6),
            number(layer["bytes"] / 1e6),
            percent(min(1.0, layer["least_milliseconds"] / layer["milliseconds"]), 0)
            if layer["milliseconds"]
            else "–",
            layer["bound"],
        ]
        for layer in model["layers"][:MOST_LAYERS]
    ]
    head: list[Child] = ["layer", "sort", "ms", "MFLOP", "MB moved", "of its roof", "bound by"]
    return folded(
        f"{model['name']}: {len(model['layers'])} layers",
        table(head, rows, label=f"Layers of {model['name']}", text=2),
    )
