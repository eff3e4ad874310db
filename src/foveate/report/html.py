"""HTML that cannot be broken by data: every plain string is escaped on its way in."""

import html
import math
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

from foveate.errors import FoveateError

CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
VOID = {"br", "hr", "img", "meta"}
NOTHING_YET = "–"


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def escape(text: str) -> str:
    """Text for an element or an attribute; what no page can hold becomes a replacement sign."""
    writable = text.encode("utf-8", "replace").decode("utf-8")
    return html.escape(CONTROLS.sub("\N{REPLACEMENT CHARACTER}", writable))


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """An element. Strings are escaped, `Html` is not, lists are flattened, None is left out.

    Attributes: a trailing underscore is dropped (`class_`), others become
    hyphens (`text_anchor`); one that is None or False is left out.
    """
    given = [(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()]
    said = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in given
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{said}>")
    return Html(f"<{name}{said}>{join(children)}</{name}>")


def join(children: Child) -> Html:
    """Children in a row, as one piece of HTML."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str):
        return Html(escape(children))
    if isinstance(children, int | float):
        return Html(children)
    return Html("".join(join(child) for child in children))


def table(head: list[Child], rows: Iterable[list[Child]], *, label: str, text: int = 1) -> Html:
    """A table that scrolls inside itself; the columns after the first `text` ones are numbers.

    A row is a list of cells; a row that begins with the string `*` is highlighted.
    """

    def row(cells: list[Child], kind: str) -> Html:
        chosen = cells[:1] == ["*"]
        cells = cells[1:] if chosen else cells
        aligned = [
            tag(kind, cell, class_=None if i < text else "number") for i, cell in enumerate(cells)
        ]
        return tag("tr", aligned, class_="chosen" if chosen else None)

    body = [row(cells, "td") for cells in rows]
    whole = tag("table", tag("thead", row(head, "th")), tag("tbody", body))
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label=label)


def document(title: str, *body: Child) -> Html:
    """A whole page with the report's style inside, that needs no other file."""
    style = files("foveate.report").joinpath("report.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return Html("<!doctype html>\n" + tag("html", head, tag("body", body), lang="en") + "\n")


def write_page(text: str, path: Path) -> Path:
    """Write a page so that it is whole at every instant.

    Raises: FoveateError if it cannot be written.
    """
    draft = path.with_name(f".{path.name}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise FoveateError(
            f"cannot write {path} ({error.strerror}): make room or allow writing there"
        ) from error
    return path


def folded(summary: str, *children: Child) -> Html:
    """What opens when asked for."""
    return tag("details", tag("summary", summary), children)


def missing(text: str) -> Html:
    """A sentence that says what is not there yet."""
    return tag("p", text, class_="missing")


def short(text: Any, limit: int = 60) -> str:
    """At most `limit` characters, cut in the middle so that both ends can be read."""
    whole = str(text)
    if len(whole) <= limit:
        return whole
    keep = limit - 1
    return f"{whole[: keep - keep // 2]}…{whole[len(whole) - keep // 2 :]}"


# ---------------------------------------------------------------- figures as words


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def percent(share: Any, digits: int = 1) -> str:
    """0.973 as 97.3%."""
    return f"{100 * share:.{digits}f}%" if is_number(share) else NOTHING_YET


def number(value: Any, digits: int = 3, unit: str = "") -> str:
    """A figure with so many significant digits, and its unit."""
    if not is_number(value):
        return NOTHING_YET
    if value == 0:
        return f"0{unit}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    if places > 6:
        return f"{value:.{digits - 1}e}{unit}"
    return f"{value:,.{places}f}{unit}"


def scaled(value: Any, base: float = 1000.0, unit: str = "") -> str:
    """A count or a size with k, M or G: 763_000 as 763 k."""
    if not is_number(value):
        return NOTHING_YET
    for prefix in ("", " k", " M", " G"):
        if abs(value) < base or prefix == " G":
            break
        value /= base
    return f"{number(value)}{prefix}{unit}" if prefix else f"{number(value)} {unit}".strip()


def interval(figure: Any, unit: str = " ms") -> str:
    """A median with its interval: 0.31 ms (0.30 to 0.33)."""
    if not isinstance(figure, dict):
        return NOTHING_YET
    low, high = figure.get("low"), figure.get("high")
    around = f" ({number(low)} to {number(high)})" if is_number(low) and is_number(high) else ""
    return number(figure.get("median"), unit=unit) + around
