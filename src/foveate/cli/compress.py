"""`foveate compress` in the terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from foveate.cli.options import AsJson, milliseconds, print_json
from foveate.errors import FoveateError


def compress(
    model: Annotated[str, typer.Argument(help="A model's folder, or an architecture.")],
    edit: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:field=value,…, in order; `list` names those there are."),
    ] = None,
    auto: Annotated[
        bool, typer.Option("--auto", help="Find the edits: for a latency, within the guard.")
    ] = False,
    latency: Annotated[
        str | None,
        typer.Option(help="With --auto: the most that one image may take here, such as 2ms."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the compressed model.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Images with labels: for edits to look at, and to judge on.")
    ] = None,
    guard: Annotated[
        float | None,
        typer.Option(help="Points of accuracy that the edits may cost; 1 with --auto."),
    ] = None,
    budget: Annotated[float, typer.Option(help="With --auto: seconds for all of it.")] = 600.0,
    tries: Annotated[int, typer.Option(help="With --auto: compositions to measure.")] = 40,
    tune: Annotated[
        float, typer.Option(help="With --auto: epochs of training once channels are removed.")
    ] = 0.0,
    by: Annotated[
        str, typer.Option(help="With --auto: accuracy, or agreement with the model as it was.")
    ] = "accuracy",
    page: Annotated[Path, typer.Option(help="With --auto: the page.")] = Path("compression.html"),
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
    if auto:
        if edit:
            raise FoveateError("--auto finds the edits itself: leave out --edit")
        if data is None:
            raise FoveateError("--auto judges by images: give --data")
        _guided(
            model,
            data,
            {
                "latency_ms": milliseconds(latency) if latency else None,
                "guard": 1.0 if guard is None else guard,
                "budget": budget,
                "tries": tries,
                "tune": tune,
                "by": by,
                "calibration": calibration,
                "seconds": seconds,
                "seed": seed,
            },
            {"out": out, "page": page, "pretrained": pretrained, "size": size},
            as_json,
        )
        return
    if latency:
        raise FoveateError("--latency says what --auto is to find: give --auto, too")
    _edited(
        {
            "model": model,
            "edits": tuple(edit or ()),
            "out": out,
            "source": data,
            "guard": guard,
            "calibration": calibration,
            "pretrained": pretrained,
            "size": size,
            "seconds": seconds,
            "seed": seed,
        },
        coverage,
        as_json,
    )


def _edited(fields: dict[str, Any], coverage: bool, as_json: bool) -> None:
    """Make the edits that were named."""
    from foveate import compress as compressing
    from foveate.surgery.replay import edits

    if fields["edits"] == ("list",):
        for name, kind in edits().items():
            Console().print(f"{name}: {(kind.__doc__ or '').splitlines()[0]}", highlight=False)
        return
    asked = compressing.Asked(**fields)
    console = Console(quiet=as_json, highlight=False)
    with console.status("loading") as status:
        facts = compressing.compress(asked, told=status.update)
    if as_json:
        print_json(facts)
        return
    if coverage:
        compressing.print_coverage(facts, console)
    console.print(compressing.table(facts))
    for sentence in compressing.remarks(facts):
        console.print(Text(sentence, style="yellow"))
    if asked.out:
        console.print(f"export it: foveate export {asked.out} DATA --out FOLDER", soft_wrap=True)


def _guided(
    model: str, data: str, wish: dict[str, Any], fields: dict[str, Any], as_json: bool
) -> None:
    """Find the edits."""
    from foveate.guidance import Wish
    from foveate.guidance.job import Asked, compress_guided, demand_met
    from foveate.guidance.words import front_table

    asked = Asked(model=model, source=data, wish=Wish(**wish), **fields)
    console = Console(quiet=as_json, highlight=False)
    with console.status("loading") as status:
        found = compress_guided(asked, told=status.update)
    if as_json:
        print_json(found.facts)
    console.print(front_table(found.facts))
    for sentence in found.words:
        console.print(Text(sentence))
    console.print(f"[dim]{asked.page}[/dim]", soft_wrap=True)
    demand_met(asked, found)
    if asked.out:
        console.print(f"export it: foveate export {asked.out} DATA --out FOLDER", soft_wrap=True)
