"""`foveate reproduce` in the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foveate.cli.options import AsJson, print_json
from foveate.errors import FoveateError


def reproduce(
    slugs: Annotated[
        list[str] | None, typer.Argument(help="Papers, as `foveate papers` names them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every claim that there is.")] = False,
    minutes: Annotated[
        float | None, typer.Option(help="Time for all of them; by default what each needs.")
    ] = None,
    data: Annotated[str, typer.Option(help="Images for claims that train.")] = "digits",
    device: Annotated[str, typer.Option(help="cpu, cuda, …")] = "cpu",
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    out: Annotated[
        Path,
        typer.Option(help="Results file; verdicts are added, and a page is written beside it."),
    ] = Path("claims.jsonl"),
    jobs: Annotated[int, typer.Option(help="Claims at once; timings want 1.")] = 1,
    engine: Annotated[str, typer.Option(help="processes, or ray.")] = "processes",
    again: Annotated[bool, typer.Option("--again", help="Also those already answered.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what papers claim, and say whether it holds here."""
    from foveate import claims
    from foveate.report.html import write_page

    if every == bool(slugs):
        raise FoveateError(
            f"say which papers, or --all; these have claims: {', '.join(claims.slugs())}"
        )
    if minutes is not None and minutes <= 0:
        raise FoveateError(f"--minutes is {minutes}: give more than 0")
    if jobs < 1:
        raise FoveateError(f"--jobs is {jobs}: give 1 or more")
    console = Console(quiet=as_json, highlight=False, soft_wrap=True)
    asked = claims.Asked(minutes=minutes, source=data, seed=seed, device=device)
    rows = claims.reproduce(
        slugs or claims.slugs(),
        out,
        asked,
        jobs=jobs,
        engine=engine,
        again=again,
        told=lambda row: console.print(_verdict(row)),
    )
    page = write_page(claims.claims_page(claims.read_results(out)), out.with_suffix(".md"))
    console.print(f"[dim]{out}, {page}[/dim]")
    if as_json:
        print_json(rows)


def _verdict(row: dict[str, Any]) -> Text:
    from foveate.claims import figure

    style = {"holds": "green", "fails": "red"}.get(row["verdict"], "yellow")
    return Text.assemble(
        (f"{row['verdict']:<13}", style), f"{row['slug']}: {figure(row)}. {row['says']}"
    )
