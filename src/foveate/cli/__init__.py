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
from foveate.cli.compare import compare
from foveate.cli.compress import compress
from foveate.cli.options import AsJson, milliseconds, print_json
from foveate.cli.profile import profile
from foveate.cli.reproduce import reproduce
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
    from foveate.deploy import export as export_model
    from foveate.deploy import load_model
    from foveate.fit import print_formats

    trained = load_model(model)
    images = open_data(data, seed=seed).labelled_as(trained.labels)
    console = Console(quiet=as_json, highlight=False)
    with console.status("exporting") as status:
        made = export_model(
            trained,
            images,
            out,
            guard=guard,
            formats=formats or None,
            budget=budget,
            again=again,
            told=lambda text: status.update(text),
        )
    if as_json:
        print_json({"chosen": made.chosen, "formats": made.formats, "absent": made.absent})
    else:
        print_formats(made.formats, made.absent, console)
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


for verb in (profile, compare, reproduce):
    app.command()(verb)


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
