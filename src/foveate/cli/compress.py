"""`foveate compress` in the terminal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from foveate.cli.options import AsJson, print_json


def compress(
    model: Annotated[str, typer.Argument(help="A model's folder, or an architecture.")],
    edit: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:field=value,…, in order; `list` names those there are."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the compressed model.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Images with labels: for edits to look at, and to judge on.")
    ] = None,
    guard: Annotated[
        float | None, typer.Option(help="Points of accuracy that the edits may cost.")
    ] = None,
    calibration: Annotated[int, typer.Option(help="Images that edits look at, at most.")] = 256,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="An architecture has published weights.")
    ] = False,
    size: Annotated[int | None, typer.Option(help="Side of an architecture's images.")] = None,
    seconds: Annotated[float, typer.Option(help="For each timing, about.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Decides the split where the data has none.")] = 0,
    coverage: Annotated[
        bool, typer.Option("--coverage", help="Say of every part what was done, or why not.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Edit a model, and say what that did to accuracy, size, arithmetic and time."""
    from foveate import compress as compressing
    from foveate.surgery.replay import edits

    if edit == ["list"]:
        for name, kind in edits().items():
            Console().print(f"{name}: {(kind.__doc__ or '').splitlines()[0]}", highlight=False)
        return
    asked = compressing.Asked(
        model=model,
        edits=tuple(edit or ()),
        out=out,
        source=data,
        guard=guard,
        calibration=calibration,
        pretrained=pretrained,
        size=size,
        seconds=seconds,
        seed=seed,
    )
    console = Console(quiet=as_json, highlight=False)
    with console.status("loading") as status:
        facts = compressing.compress(asked, told=status.update)
    if as_json:
        print_json(facts)
        return
    if coverage:
        compressing.print_coverage(facts, console)
    console.print(compressing.table(facts))
    if out:
        console.print(f"export it: foveate export {out} DATA --out FOLDER", soft_wrap=True)
