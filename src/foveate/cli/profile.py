"""`foveate profile` in the terminal."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from foveate.cli.options import AsJson, print_json


def profile(
    model: Annotated[str, typer.Argument(help="An architecture, or a model's folder.")],
    compare: Annotated[list[str] | None, typer.Option(help="Another one; may be repeated.")] = None,
    resolution: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    batch: Annotated[int, typer.Option(help="Images at once.")] = 1,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="eager, channels_last, compile, onnx or openvino; may be repeated."),
    ] = None,
    training: Annotated[bool, typer.Option("--training", help="A training step, too.")] = False,
    growth: Annotated[
        bool, typer.Option("--growth", help="Fit the time against resolution and batch, too.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="For each timing, about.")] = 1.0,
    data: Annotated[
        str | None, typer.Option(help="Images to count on, where work follows the image.")
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure the machine's ceilings again.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The page.")] = Path("profile.html"),
    as_json: AsJson = False,
) -> None:
    """Say where a model's time goes, and how near it comes to what the machine can do."""
    from foveate import profile as profiling
    from foveate.report.html import write_page
    from foveate.report.profile import profile_page

    asked = profiling.Asked(
        models=(model, *(compare or ())),
        resolution=resolution,
        batch=batch,
        runtimes=tuple(runtime or profiling.USUAL),
        training=training,
        growth=growth,
        seconds=seconds,
        fresh=fresh,
        data=data,
    )
    console = Console(quiet=as_json, highlight=False)
    with console.status("loading") as status:
        facts = profiling.profile(asked, told=status.update)
    words = profiling.explain(facts)
    write_page(profile_page(facts, words), out)
    if as_json:
        print_json(facts)
        return
    console.print(profiling.runtimes_table(facts))
    for sentence in words:
        console.print(Text(sentence))
    console.print(f"[dim]{out}[/dim]", soft_wrap=True)
