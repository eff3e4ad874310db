"""The whole page: the sections in their order, in one file that needs no other."""

from pathlib import Path

from foveate.report.folder import Folder, read
from foveate.report.html import Html, document, short, tag, write_page
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
    return write_page(page(read(run)), run / "report.html")


def page(folder: Folder) -> Html:
    """A run as an HTML document."""
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, title, _ in SECTIONS]
    sections = [
        tag("section", tag("h2", title), make(folder), id=name) for name, title, make in SECTIONS
    ]
    version = folder.get("foveate")
    footer = f"Written by Foveate {version}." if version else "Written by Foveate."
    return document(
        f"{short(folder.path.resolve().name)}: a report by Foveate",
        tag("header", verdict.section(folder), tag("nav", tag("ul", links), aria_label="Sections")),
        tag("main", sections),
        tag("footer", footer),
    )
