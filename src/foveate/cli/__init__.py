"""The command line: parse, call one function, print."""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import foveate
from foveate.cli.compress import compress
from foveate.cli.options import AsJson, milliseconds, print_json
from foveate.errors import FoveateError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Turn a folder of images into a small, fast, explained vision model.\n\n"
        "Start here:\n\n"
        "  [bold]foveate fit digits --out runs/digits --minutes 1[/bold]   "
        "the whole path on built-in data\n\n"
        "  [bold]foveate fit photos/ --out runs/photos --latency 5ms --minutes 30[/bold]   "
        "on your own images\n\n"
        "  [bold]foveate predict runs/photos/model cat.jpg[/bold]   use what came out\n\n"
        "A data source is a folder of class folders, the same in a .zip or .tar(.gz), a CSV or "
        "Parquet table with the columns path and label, an .npz file, or the word digits. "
        "A run that was stopped goes on when the same command is given again."
    ),
)

_USAGE_ERROR: Any = typer.BadParameter.__base__  # typer keeps no public name for it


@app.command()
def fit(
    data: Annotated[str, typer.Argument(help="Images: a folder, archive, table, .npz or digits.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; give it again to go on.")],
    minutes: Annotated[
        float | None, typer.Option(help="Time to look, choose and train in; 10 unless --epochs.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Train for this many passes instead of a time.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(help="The most that one image may take here, such as 5ms.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A name of `foveate models`, timm/NAME, or auto: race several.")
    ] = "auto",
    guard: Annotated[
        float, typer.Option(help="Points of accuracy that compression may cost.")
    ] = 1.0,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    seed: Annotated[int, typer.Option(help="Decides split, order, augmentation, weights.")] = 0,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Begin with published weights.")
    ] = False,
    max_bad: Annotated[
        float, typer.Option(help="Stop if a larger share of the files cannot be used.")
    ] = 0.1,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the curves for TensorBoard too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a model from images: look, choose, train, compress, test, report."""
    from foveate.fit import Asked
    from foveate.fit import fit as run_fit

    asked = Asked(
        source=data,
        minutes=minutes if minutes is not None or epochs is not None else 10.0,
        epochs=epochs,
        latency_ms=milliseconds(latency) if latency else None,
        model=model,
        guard=guard,
        size=size,
        batch=batch,
        seed=seed,
        pretrained=pretrained,
        max_bad=max_bad,
        tensorboard=tensorboard,
    )
    facts = run_fit(asked, out, command=_command(), quiet=as_json)
    if as_json and facts:
        print_json(facts)


@app.command()
def look(
    data: Annotated[str, typer.Argument(help="Images: a folder, archive, table, .npz or digits.")],
    seed: Annotated[int, typer.Option(help="Decides the split.")] = 0,
    max_bad: Annotated[
        float, typer.Option(help="Stop if a larger share of the files cannot be used.")
    ] = 0.1,
    as_json: AsJson = False,
) -> None:
    """Say what is in a data source: classes, sizes, damaged files, duplicates."""
    from foveate.data import open as open_data

    summary = open_data(data, seed=seed, max_bad=max_bad).summary()
    if as_json:
        print_json(summary)
    else:
        from foveate.fit import print_look

        print_look(summary, Console())


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="The model's folder, as in RUN/model.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    format: Annotated[str | None, typer.Option(help="Use this exported format.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is in each image."""
    predictor = foveate.load(model, format=format)
    files = [file for path in images for file in _files(path)]
    predictions = predictor.predict(files)
    if as_json:
        print_json(
            [
                {"path": str(f), "label": p.label, "probability": round(p.probability, 6)}
                for f, p in zip(files, predictions, strict=True)
            ]
        )
        return
    table = Table("image", "label", "probability")
    for file, prediction in zip(files, predictions, strict=True):
        table.add_row(str(file), prediction.label, f"{prediction.probability:.1%}")
    Console().print(table)


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, typer.Argument(help="The model's folder, as in RUN/model.")],
    data: Annotated[str, typer.Argument(help="Images with labels, as for fit.")],
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    format: Annotated[str | None, typer.Option(help="Use this exported format.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the split where the data has none.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a model's accuracy on labelled images."""
    from foveate.data import Split
    from foveate.data import open as open_data

    predictor = foveate.load(model, format=format)
    splits = open_data(data, seed=seed).labelled_as(predictor.labels).splits
    splits["all"] = Split.joined(list(splits.values()))
    if split not in splits:
        raise FoveateError(
            f"there is no split {split!r} in {data}: choose one of {', '.join(splits)}"
        )
    result = {"format": predictor.format, "split": split, **predictor.evaluate(splits[split])}
    if as_json:
        print_json(result)
        return
    console = Console()
    console.print(
        f"top-1 {result['top1']:.2%} of {len(splits[split])} images "
        f"({split}, {result['format']}), loss {result['loss']:.4f}"
    )
    table = Table("label", "accuracy")
    for label, accuracy in result["per_class"].items():
        table.add_row(label, "no images" if accuracy is None else f"{accuracy:.1%}")
    console.print(table)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model's folder, such as RUN/trained.")],
    data: Annotated[str, typer.Argument(help="Images with labels: to calibrate and to judge on.")],
    out: Annotated[Path, typer.Option(help="Folder of the exported model.")],
    guard: Annotated[
        float, typer.Option(help="Points of accuracy that compression may cost.")
    ] = 1.0,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="Only this format; may be repeated.")
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Seconds to look for the fastest programs in.")
    ] = 180.0,
    again: Annotated[
        bool, typer.Option("--again", help="Measure again what is remembered of this machine.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides the split where the data has none.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Export a trained model anew, with another guard or in chosen formats."""
    from foveate.data import open as open_data
    from foveate.deploy import FORMATS, load_model
    from foveate.deploy import export as export_model
    from foveate.fit import print_formats

    trained = load_model(model)
    wanted = tuple(formats or FORMATS)
    images = open_data(data, seed=seed).labelled_as(trained.labels)
    console = Console(quiet=as_json, highlight=False)
    with console.status("exporting") as status:
        made = export_model(
            trained,
            images,
            out,
            guard=guard,
            formats=wanted,
            budget=budget,
            again=again,
            told=lambda text: status.update(text),
        )
    if as_json:
        print_json({"chosen": made.chosen, "formats": made.formats})
    else:
        print_formats(made.formats, console)
        console.print(f"use it: foveate predict {out} IMAGE", soft_wrap=True)


app.command()(compress)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
) -> None:
    """Write a run's report anew."""
    from foveate.report import write

    Console().print(str(write(run)), soft_wrap=True)


@app.command()
def models(
    pattern: Annotated[
        str | None, typer.Argument(help="Only names that match, such as 'conv*' or 'timm/*vit*'.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the architectures that --model accepts."""
    names = foveate.list_models(pattern)
    if as_json:
        print_json(names)
    elif names:
        Console().print("\n".join(names), soft_wrap=True, highlight=False)
    else:
        raise FoveateError(
            f"no model matches {pattern!r}: `foveate models` lists ours, 'timm/*' those of timm"
        )


@app.command()
def papers(
    words: Annotated[
        list[str] | None, typer.Argument(help="What to search for, or: show SLUG.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="operator, backbone, training, surgery, …")
    ] = None,
    tier: Annotated[int | None, typer.Option(help="1 to 4.")] = None,
    status: Annotated[str | None, typer.Option(help="implemented, checked or claimed.")] = None,
    as_json: AsJson = False,
) -> None:
    """Search the catalogue of papers, or show one: foveate papers show SLUG."""
    from foveate.catalog import search
    from foveate.catalog.show import print_paper, print_papers

    if words and words[0] == "show":
        if len(words) != 2:
            raise FoveateError("papers show takes one slug: foveate papers show inceptionnext")
        print_paper(words[1], json=as_json)
    else:
        found = search(" ".join(words or []), kind=kind, tier=tier, status=status)
        print_papers(found, json=as_json)


@app.command()
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


@app.command()
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


@app.command()
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


def _version(value: bool) -> None:
    if value:
        print(f"foveate {foveate.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        if not files:
            raise FoveateError(f"{path} holds no files: name image files or a folder of them")
        return files
    return [path]


def _command() -> str:
    """The command as a person would type it again."""
    import shlex

    return shlex.join(["foveate", *sys.argv[1:]])


OF_THE_MACHINE = {
    errno.EACCES: "give a place that you may use",
    errno.EPERM: "give a place that you may use",
    errno.EROFS: "give a place that can be written to",
    errno.ENOSPC: "make room and give the same command again",
    errno.EDQUOT: "make room and give the same command again",
    errno.EFBIG: "make room and give the same command again",
    errno.EIO: "see to the disk and give the same command again",
    errno.EMFILE: "allow more open files (ulimit -n) and give the same command again",
}
"""What a person can do when the machine refuses, by error number; what else fails is a bug."""


def main() -> None:
    """The console script: exit codes 0, 1 (a bug), 2 (a mistake to mend), 130 (interrupted)."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except FoveateError as error:
        _fail(str(error), error.exit_code)
    except _USAGE_ERROR as error:
        _fail(" ".join(error.format_message().split()), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; give the same command again to go on", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        place = error.filename or "the disk"
        _fail(f"cannot use {place} ({error.strerror}): {OF_THE_MACHINE[error.errno]}", 2)


def _fail(message: str, code: int) -> None:
    heading = ("error: ", "red") if code != 130 else ""
    Console(stderr=True, soft_wrap=True).print(Text.assemble(heading, message))
    sys.exit(code)
