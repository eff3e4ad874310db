"""`foveate compare` in the terminal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from foveate.cli.options import AsJson, print_json


def compare(
    names: Annotated[
        list[str] | None, typer.Argument(help="Token mixers; without any, those there are.")
    ] = None,
    data: Annotated[str, typer.Option(help="Images, as for fit.")] = "digits",
    equal: Annotated[str, typer.Option(help="What all have the same of: macs or params.")] = "macs",
    budget: Annotated[int | None, typer.Option(help="How many of them.")] = None,
    epochs: Annotated[float, typer.Option(help="Of every training.")] = 5.0,
    seeds: Annotated[int, typer.Option(help="Trainings of every mixer.")] = 3,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    seed: Annotated[int, typer.Option(help="The first seed.")] = 0,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("comparison.html"),
    as_json: AsJson = False,
) -> None:
    """Compare token mixers in one skeleton, at equal cost and under one recipe."""
    from foveate import compare as comparing
    from foveate.report.comparison import comparison_page
    from foveate.report.html import write_page

    if not names:
        known = list(comparing.mixers())
        print_json(known) if as_json else Console().print("\n".join(known), highlight=False)
        return
    asked = comparing.Asked(
        mixers=tuple(names),
        source=data,
        equal=equal,
        budget=budget,
        epochs=epochs,
        seeds=seeds,
        size=size,
        seed=seed,
    )
    console = Console(quiet=as_json, highlight=False)
    with console.status("loading") as status:
        facts = comparing.compare(asked, told=status.update)
    write_page(comparison_page(facts), out)
    if as_json:
        print_json(facts)
        return
    table = Table("mixer", "top-1", "behind the best", "latency", "params", "MACs")
    for row in facts["mixers"]:
        low, high = row["interval"]
        lost = row["behind"]
        table.add_row(
            row["name"],
            f"{row['top1']:.1%} ({low:.1%} to {high:.1%})",
            f"{lost['points']:.1f} points: {row['verdict']}",
            f"{row['latency_ms']['median']:.2f} ms",
            f"{row['params'] / 1e6:.2f} M",
            f"{row['macs'] / 1e6:.1f} M",
        )
    console.print(table)
    console.print(f"[dim]{out}[/dim]", soft_wrap=True)
