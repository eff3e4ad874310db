"""The whole page: the sections in their order, in one file that needs no other."""

from importlib.resources import files
from pathlib import Path

from foveate.errors import FoveateError
from foveate.report.folder import Folder, read
from foveate.report.html import Html, short, tag
from foveate.report.sections import (
    calibration,
    choice,
    data,
    deployment,
    mistakes,
    reproduce,
    training,
    verdict,
)

SECTIONS = [
    ("data", "The data", data.section),
    ("choice", "The choice", choice.section),
    ("training", "Training", training.section),
    ("mistakes", "What it gets wrong", mistakes.section),
    ("calibration", "Calibration", calibration.section),
    ("deployment", "Deployment", deployment.section),
    ("reproduce", "Reproduce", reproduce.section),
]


def write(run: Path) -> Path:
    """Write a run's report from what its folder holds, however far the run has come.

    Args:
        run: the folder with run.json and, as far as they are there, metrics.jsonl
            and analysis.npz.

    Returns: the path of `report.html`, which is whole at every instant.
    Raises: FoveateError if there is no run in the folder or the page cannot be written.
    """
    run = Path(run)
    text = page(read(run))
    path, draft = run / "report.html", run / ".report.html.draft"
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise FoveateError(
            f"cannot write {path} ({error.strerror}): make room or allow writing there"
        ) from error
    return path


def page(folder: Folder) -> Html:
    """A run as an HTML document."""
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in SECTIONS]
    sections = [
        tag("section", tag("h2", title), make(folder), id=name) for name, title, make in SECTIONS
    ]
    version = folder.get("foveate")
    footer = f"Written by Foveate {version}." if version else "Written by Foveate."
    body = tag(
        "body",
        tag("header", verdict.section(folder), tag("nav", tag("ul", links), aria_label="Sections")),
        tag("main", sections),
        tag("footer", footer),
    )
    return Html("<!doctype html>\n" + tag("html", _head(folder), body, lang="en") + "\n")


def _head(folder: Folder) -> Html:
    style = files("foveate.report").joinpath("report.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{short(folder.path.resolve().name)}: a report by Foveate"),
        tag("style", Html(style)),
    )
