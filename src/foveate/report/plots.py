"""The report's plots: curves, points, bars, the confusion heat map, the reliability diagram."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.report.axes import (
    Axes,
    Format,
    Scale,
    axes,
    place,
    plain,
    span,
    svg,
    whole_percent,
    word,
)
from foveate.report.html import Child, Html, is_number, number, percent, short, tag
from foveate.report.scores import Bin, pareto

POINTS = 200
MARKED = 40


@dataclass(frozen=True)
class Series:
    """Points in the order of x, a name for the legend, and one of the page's colours a to d."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str = "a"

    @property
    def points(self) -> list[tuple[float, float]]:
        """The finite ones, thinned to at most 200 by means of neighbours."""
        whole = [p for p in zip(self.x, self.y, strict=True) if all(is_number(v) for v in p)]
        groups = np.array_split(np.array(whole).reshape(-1, 2), min(POINTS, len(whole)) or 1)
        return [tuple(group.mean(axis=0).tolist()) for group in groups if len(group)]


@dataclass(frozen=True)
class Point:
    """A named place in a plot of cost against gain."""

    name: str
    cost: float
    gain: float
    kind: str = "a"


@dataclass(frozen=True)
class Bar:
    """A named length with its interval; the chosen one stands out."""

    name: str
    value: float
    low: float | None
    high: float | None
    kind: str = "b"


def figure(title: str, drawing: Child, keys: Sequence[tuple[str, str]] = ()) -> Html:
    """A drawing under its title and its legend of (colour, name)."""
    legend = [tag("li", tag("i", class_=f"key {colour}"), name) for colour, name in keys]
    caption = tag("figcaption", tag("b", title), tag("ul", legend, class_="legend") if keys else "")
    return tag("figure", caption, drawing)


def curves(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    y_name: str,
    y_format: Format = plain,
    zero: bool = False,
    keys: Sequence[tuple[str, str]] | None = None,
) -> Html | None:
    """Lines over a common x, a key for each by default; None if no series has a point."""
    drawn = [(s, s.points) for s in series if s.points]
    if not drawn:
        return None
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    left, right = min(xs), max(xs)
    frame = axes(
        (left, right if right > left else left + 1),
        span(ys, zero=zero),
        x_name,
        y_name,
        y_format=y_format,
    )
    marks = [_line(frame, s, points) for s, points in drawn]
    named = [(s.colour, s.name) for s, _ in drawn]
    return figure(title, frame.draw(marks, description=title), named if keys is None else keys)


def _line(frame: Axes, series: Series, points: Sequence[tuple[float, float]]) -> list[Html]:
    path = " ".join(f"{place(frame.x(x))},{place(frame.y(y))}" for x, y in points)
    line = tag("polyline", points=path, class_=f"line {series.colour}")
    if len(points) > MARKED:
        return [line]
    said = [f"{series.name}: {frame.y_format(float(f'{y:.4g}'))} at {x:.3g}" for x, y in points]
    dots = [
        _dot(frame, x, y, series.colour, words, 2.5)
        for (x, y), words in zip(points, said, strict=True)
    ]
    return [line, *dots]


def _dot(frame: Axes, x: float, y: float, colour: str, said: str, radius: float = 5) -> Html:
    at = {"cx": place(frame.x(x)), "cy": place(frame.y(y))}
    return tag("circle", tag("title", said), **at, r=radius, class_=f"dot {colour}")


def trade(
    title: str,
    points: Sequence[Point],
    *,
    too_slow: Sequence[tuple[str, float]] = (),
    budget: float | None = None,
    floor: float | None = None,
    front: Sequence[Point] | None = None,
    gain_name: str = "top-1",
    keys: Sequence[tuple[str, str]] = (),
) -> Html | None:
    """Accuracy against latency with the Pareto front; those not raced are ticks on the axis.

    Args:
        points: what was measured.
        too_slow: names and latencies of those that were not raced.
        budget: the most latency that was asked for.
        floor: the least accuracy that was.
        front: by default the points that no other beats in both.
        gain_name: what the accuracy is called.
        keys: of the legend, (colour, name).
    """
    if not points:
        return None
    costs, gains = [p.cost for p in points], [p.gain for p in points]
    all_costs = [*costs, *(cost for _, cost in too_slow), *([budget] if budget else [])]
    frame = axes(
        span(all_costs, log=True),
        span([*gains, *([] if floor is None else [floor])]),
        "latency of one image, ms (log)",
        gain_name,
        y_format=whole_percent,
        log_x=True,
    )
    if front is None:
        front = [points[i] for i in pareto(costs, gains)]
    steps = " ".join(f"{place(frame.x(p.cost))},{place(frame.y(p.gain))}" for p in front)
    marks = [
        tag("polyline", points=steps, class_="line front"),
        [_outside(frame, name, cost) for name, cost in too_slow],
        _limit(frame, budget) if budget else None,
        _floor(frame, floor) if floor is not None else None,
        [
            _dot(frame, p.cost, p.gain, p.kind, f"{p.name}: {percent(p.gain)}, {number(p.cost)} ms")
            for p in points
        ],
        _names(frame, points),
    ]
    return figure(title, frame.draw(marks, description=title), keys)


def _names(frame: Axes, points: Sequence[Point]) -> list[Html]:
    """The points' names beside them, on the side with room, where they do not cover each other."""
    placed: list[tuple[float, float, float]] = []
    marks = []
    for point in sorted(points, key=lambda p: p.kind != "b"):
        text = short(point.name, 26)
        x, y, width = frame.x(point.cost), frame.y(point.gain), 6.2 * len(short(point.name, 26))
        left = x + 8 + width > frame.width - 4
        start = x - 8 - width if left else x + 8
        if any(abs(y - v) < 12 and start < e and s < start + width for s, e, v in placed):
            continue
        placed.append((start, start + width, y))
        marks.append(word(x - 8 if left else x + 8, y + 4, text, "end" if left else "start"))
    return marks


def _outside(frame: Axes, name: str, cost: float) -> Html:
    x, y = frame.x(cost), frame.y.start
    cross = f"M{place(x - 4)} {place(y - 12)}l8 8m0 -8l-8 8"
    said = f"{name}: {number(cost)} ms, not raced"
    return tag("path", tag("title", said), d=cross, class_="cross")


def _limit(frame: Axes, budget: float) -> Html:
    x = place(frame.x(budget))
    said = f"{budget:g} ms asked for"
    return tag("line", tag("title", said), x1=x, x2=x, y1=12, y2=frame.y.start, class_="limit")


def _floor(frame: Axes, least: float) -> Html:
    y, x = place(frame.y(least)), frame.x
    said = f"{percent(least)} asked for"
    return tag("line", tag("title", said), x1=x.start, x2=x.end, y1=y, y2=y, class_="limit")


def bars(
    title: str, rows: Sequence[Bar], unit: str, keys: Sequence[tuple[str, str]] = ()
) -> Html | None:
    """Horizontal bars with their intervals, one under the other."""
    if not rows:
        return None
    height, left, right = 38, 8, 412
    most = max(max(row.value, row.high or 0) for row in rows) or 1.0
    scale = Scale(0, most * 1.02, left, right - 78)
    marks = [_bar(row, i * height, scale, unit) for i, row in enumerate(rows)]
    return figure(title, svg(420, height * len(rows) + 4, title, marks), keys)


def _bar(row: Bar, top: float, scale: Scale, unit: str) -> list[Html | None]:
    end, middle = scale(row.value), top + 22
    rect = tag(
        "rect",
        tag("title", f"{row.name}: {number(row.value)} {unit}"),
        x=scale.start,
        y=top + 17,
        width=place(max(1.0, end - scale.start)),
        height=10,
        rx=2,
        class_=f"bar {row.kind}",
    )
    whisker = None
    if row.low is not None and row.high is not None:
        low, high = place(scale(row.low)), place(scale(row.high))
        stroke = f"M{low} {middle}H{high}M{low} {middle - 4}v8M{high} {middle - 4}v8"
        whisker = tag("path", d=stroke, class_="whisker")
    reach = max(end, scale(row.high) if row.high is not None else 0)
    return [
        word(scale.start, top + 12, row.name),
        rect,
        whisker,
        word(reach + 7, top + 26, f"{number(row.value)} {unit}"),
    ]


def heat_map(title: str, matrix: np.ndarray, labels: Sequence[str]) -> Html:
    """A confusion matrix: rows are true, columns predicted, shades are shares of a row."""
    classes = len(matrix)
    names = [short(label, 14) for label in labels]
    longest = max(map(len, names))
    cell = max(15, min(40, 480 // classes))
    left, top, size = 30 + 6.6 * longest, 26.0, cell * classes
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    cells = [
        _cell(
            left + j * cell,
            top + i * cell,
            cell,
            int(matrix[i, j]),
            float(shares[i, j]),
            i == j,
            f"{labels[i]} taken for {labels[j]}: {matrix[i, j]} of {matrix[i].sum()}",
        )
        for i, j in np.argwhere(matrix).tolist()
    ]
    frame = tag("rect", x=left, y=top, width=size, height=size, class_="frame")
    words = _class_names(names, left, top, cell)
    drawing = svg(left + size + 8, top + size + 18 + 5 * longest, title, frame, cells, words)
    style = f"min-width:{7 + 1.5 * classes:.0f}rem;max-width:{(left + size) / 12:.0f}rem"
    inside = tag("div", drawing, style=style)
    scroll = tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=title)
    return figure(title, scroll, [("a", "right"), ("b", "wrong")])


def _class_names(names: Sequence[str], left: float, top: float, cell: float) -> list[Html]:
    """The names beside the rows and, turned, under the columns; and which is which."""
    size = cell * len(names)
    beside = [word(left - 6, top + (i + 0.5) * cell + 4, n, "end") for i, n in enumerate(names)]
    places = [
        f"translate({left + (j + 0.7) * cell:.1f} {top + size + 12})" for j in range(len(names))
    ]
    under = [
        word(0, 0, n, "end", transform=f"{at} rotate(-45)")
        for n, at in zip(names, places, strict=True)
    ]
    across = word(left + size / 2, 14, "predicted", "middle", class_="name")
    turned = f"rotate(-90 12 {place(top + size / 2)})"
    down = word(12, top + size / 2, "true", "middle", class_="name", transform=turned)
    return [*beside, *under, across, down]


def _cell(
    x: float, y: float, side: float, count: int, share: float, right: bool, said: str
) -> list[Html | None]:
    # A few mistakes must be seen beside a full diagonal, so theirs is a steeper shade.
    shade = 0.08 + 0.87 * (share if right else min(1.0, share**0.5))
    rect = tag(
        "rect",
        tag("title", said),
        x=place(x),
        y=place(y),
        width=side - 1,
        height=side - 1,
        fill_opacity=f"{shade:.2f}",
        class_=f"cell {'a' if right else 'b'}",
    )
    if side < 26:
        return [rect, None]
    contrast = "on" if shade > 0.55 else None
    return [rect, word(x + side / 2, y + side / 2 + 4, str(count), "middle", class_=contrast)]


def reliability_diagram(title: str, bins: Sequence[Bin], colour: str = "a") -> Html:
    """Accuracy against confidence: the diagonal is perfect, a larger dot holds more images."""
    frame = axes(
        (0, 1), (0, 1), "confidence", "accuracy", x_format=whole_percent, y_format=whole_percent
    )
    ideal = {"x1": frame.x(0), "y1": frame.y(0), "x2": frame.x(1), "y2": frame.y(1)}
    total = sum(b.count for b in bins)
    marks: list[Child] = []
    for b in bins:
        left, right = frame.x(b.low), frame.x(b.high)
        said = f"{percent(b.confidence)} sure, {percent(b.accuracy)} right, {b.count} images"
        marks.append(
            tag(
                "rect",
                tag("title", said),
                x=place(left + 0.5),
                y=place(frame.y(b.accuracy)),
                width=place(right - left - 1),
                height=place(frame.y(0) - frame.y(b.accuracy)),
                class_=f"column {colour}",
            )
        )
        radius = 2.5 + 4 * (b.count / total) ** 0.5
        marks.append(_dot(frame, b.confidence, b.accuracy, colour, said, round(radius, 1)))
    drawing = frame.draw(tag("line", **ideal, class_="limit"), marks, description=title)
    return figure(title, drawing)
