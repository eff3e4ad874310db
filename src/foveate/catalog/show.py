"""Papers in the terminal: a table of many, or one in full; or JSON for a machine."""

import json as jsonlib
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foveate.catalog.evidence import Status, status
from foveate.catalog.rows import Paper, paper

_VERDICT_STYLES = {"holds": "green", "fails": "red", "inconclusive": "yellow"}


def print_papers(found: list[Paper], *, json: bool = False, console: Console | None = None) -> None:
    """Print a table of papers with their status, or a JSON array with a row for each."""
    if json:
        _print_json([_row(row) for row in found])
        return
    console = console or Console()
    if not found:
        console.print("no paper fits: try fewer or other words, or drop an option")
        return
    console.print(_table(found))
    console.print(
        f"{_plural(len(found), 'paper')}; [bold]foveate papers show SLUG[/bold] says more"
    )


def print_paper(slug: str, *, json: bool = False, console: Console | None = None) -> None:
    """Print all that is known about a paper.

    As JSON it is an array of one row, as a search gives, with the symbols, tests, claim's file
    and verdict that its status rests on.

    Raises: FoveateError, with the nearest slugs, if there is no such paper.
    """
    row, found = paper(slug), status(slug)
    if json:
        _print_json([{**_row(row), **_evidence(found)}])
        return
    console = console or Console()
    console.print(Text(row.title, style="bold"))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in (*_facts(row), *_found(found)):
        grid.add_row(label, Text(text) if isinstance(text, str) else text)
    console.print(grid)


def _table(found: list[Paper]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("slug", style="bold", no_wrap=True)
    table.add_column("tier", justify="right", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("title")
    for row in found:
        standing = _standing(status(row.slug))
        table.add_row(row.slug, str(row.tier), row.kind, standing, Text(row.title))
    return table


def _standing(state: Status) -> Text:
    """What has been reached, in words: implemented, checked, holds."""
    reached = [word for word in ("implemented", "checked") if getattr(state, word)]
    if state.claimed:
        reached.append(state.claimed)
    style = _VERDICT_STYLES.get(state.claimed or "", "green" if reached else "dim")
    return Text("\n".join(reached) or "open", style=style)


def _facts(row: Paper) -> list[tuple[str, str]]:
    facts = [
        ("slug", row.slug),
        ("kind", f"{row.kind}, tier {row.tier}, {row.group}"),
        ("year", str(row.year or "")),
        ("paper", row.arxiv_url),
        ("code", row.repo_url),
        ("needs", ", ".join(row.needs)),
        ("what", row.what),
        ("claim", row.claim),
        ("check", row.check),
    ]
    return [(label, text) for label, text in facts if text]


def _found(state: Status) -> list[tuple[str, str | Text]]:
    return [
        ("implemented", _lines(state.symbols)),
        ("checked", _lines(state.tests)),
        ("claimed", _claimed(state)),
    ]


def _lines(places: tuple[str, ...]) -> Text:
    return Text("\n".join(places), style="green") if places else Text("not yet", style="dim")


def _claimed(state: Status) -> Text:
    if state.verdict:
        return Text(str(state.verdict), style=_VERDICT_STYLES[state.verdict.outcome])
    return Text(f"{state.claim}, not run yet" if state.claim else "not yet", style="dim")


def _row(row: Paper) -> dict[str, Any]:
    return {**row.as_json(), "status": status(row.slug).as_json()}


def _evidence(state: Status) -> dict[str, Any]:
    verdict = state.verdict
    return {
        "symbols": list(state.symbols),
        "tests": list(state.tests),
        "claim_file": state.claim,
        "verdict": verdict
        and {
            "verdict": verdict.outcome,
            "figure": verdict.figure,
            "interval": list(verdict.interval),
        },
    }


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _print_json(value: Any) -> None:
    print(jsonlib.dumps(value, indent=1, ensure_ascii=False))
