"""The frame of a plot: scales, ticks and grid, as inline SVG that takes the page's colours."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foveate.report.html import Child, Html, tag

WIDTH, HEIGHT = 420, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 44

Format = Callable[[float], str]


def plain(value: float) -> str:
    """A tick's figure without needless zeros."""
    return f"{value:.6g}" if abs(value) < 1e5 else f"{value:.0e}"


def whole_percent(value: float) -> str:
    """0.5 as 50%; tenths only where they are needed."""
    return f"{100 * value:.4g}%"


@dataclass(frozen=True)
class Scale:
    """From figures to a place on the page, straight or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, value
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round figures inside the range."""
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def span(values: Sequence[float], *, log: bool = False, zero: bool = False) -> tuple[float, float]:
    """A range that holds the values with some air, and is never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log:
        return low / 1.25, high * 1.25
    if zero:
        return 0.0, high * 1.06 if high > 0 else 1.0
    air = 0.06 * (high - low) or 0.1 * abs(high) or 0.5
    return low - air, high + air


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within [low, high]; powers alone if there are many.

    A range that holds fewer than two of them has ticks as a straight one.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    alone = [10.0**p for p in powers if low <= 10.0**p <= high]
    return alone if len(found) > 7 else found if len(found) > 1 else ticks(low, high, 3)


@dataclass(frozen=True)
class Axes:
    """Two scales, their names, and how their figures are written."""

    x: Scale
    y: Scale
    x_name: str
    y_name: str
    x_format: Format = plain
    y_format: Format = plain
    width: int = WIDTH
    height: int = HEIGHT

    def draw(self, *marks: Child, description: str) -> Html:
        """The plot with these marks on it."""
        return svg(self.width, self.height, description, self._grid(), self._names(), marks)

    def _grid(self) -> list[Html]:
        left, right = self.x.start, self.x.end
        bottom = self.y.start
        across = [
            tag("line", x1=left, x2=right, y1=place(y), y2=place(y), class_="grid")
            for y in map(self.y, self.y.ticks())
        ]
        up = [
            tag("line", x1=place(x), x2=place(x), y1=bottom, y2=bottom + 4, class_="axis")
            for x in map(self.x, self.x.ticks())
        ]
        base = tag("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis")
        below = [
            word(self.x(v), bottom + 17, self.x_format(v), anchor="middle") for v in self.x.ticks()
        ]
        beside = [word(left - 7, self.y(v) + 4, self.y_format(v), "end") for v in self.y.ticks()]
        return [*across, *up, base, *below, *beside]

    def _names(self) -> list[Html]:
        middle = (self.x.start + self.x.end) / 2
        height = (self.y.start + self.y.end) / 2
        turned = f"rotate(-90 12 {place(height)})"
        return [
            word(middle, self.height - 6, self.x_name, "middle", class_="name"),
            word(12, height, self.y_name, "middle", class_="name", transform=turned),
        ]


def axes(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_name: str,
    y_name: str,
    *,
    x_format: Format = plain,
    y_format: Format = plain,
    log_x: bool = False,
    log_y: bool = False,
) -> Axes:
    """A frame of the usual size."""
    x = Scale(*x_range, LEFT, WIDTH - RIGHT, log_x)
    y = Scale(*y_range, HEIGHT - BOTTOM, TOP, log_y)
    return Axes(x, y, x_name, y_name, x_format, y_format)


def svg(width: float, height: float, description: str, *children: Child) -> Html:
    """A drawing that fills the width it is given."""
    return tag("svg", children, viewBox=f"0 0 {width} {height}", role="img", aria_label=description)


def word(x: float, y: float, text: str, anchor: str = "start", **attributes: str | None) -> Html:
    """Text at a place."""
    return tag("text", text, x=place(x), y=place(y), text_anchor=anchor, **attributes)


def place(value: float) -> str:
    """A coordinate, short."""
    return f"{value:.1f}".removesuffix(".0")
