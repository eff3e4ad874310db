"""How training went: loss, accuracy and learning rate over the epochs."""

from foveate.report.axes import whole_percent
from foveate.report.folder import Folder
from foveate.report.html import Html, is_number, join, missing, number, percent, tag
from foveate.report.plots import Series, curves

NAN = float("nan")


def section(folder: Folder) -> Html:
    """Curves, or that there are none yet."""
    if not folder.train and not folder.evaluations:
        return missing("Nothing has been trained yet.")
    plots = [
        curves(
            "Loss",
            [_series(folder.train, "loss", "train", "a"), _series(folder.evaluations, "loss", "validation", "b")],
            x_name="epoch",
            y_name="loss",
        ),
        curves(
            "Accuracy",
            [_series(folder.train, "top1", "train", "a"), _series(folder.evaluations, "top1", "validation", "b")],
            x_name="epoch",
            y_name="top-1",
            y_format=whole_percent,
        ),
        curves(
            "Learning rate",
            [_series(folder.train, "learning_rate", "learning rate", "a")],
            x_name="epoch",
            y_name="learning rate",
            zero=True,
        ),
    ]  # fmt: skip
    return join([_words(folder), tag("div", plots, class_="plots")])


def _series(lines: list[dict], key: str, name: str, colour: str) -> Series:
    whole = [line for line in lines if is_number(line.get("epoch"))]
    values = [line.get(key) if is_number(line.get(key)) else NAN for line in whole]
    return Series(name, [line["epoch"] for line in whole], values, colour)


def _words(folder: Folder) -> Html:
    if not (done := folder.get("training")):
        return missing("Training is not finished: the curves go as far as it has come.")
    parts = [
        f"{number(done.get('epochs'))} epochs" if is_number(done.get("epochs")) else "",
        f"{done['steps']:,} steps" if is_number(done.get("steps")) else "",
        f"{number(done.get('minutes'))} minutes" if is_number(done.get("minutes")) else "",
        f"{number(done.get('images_per_second'))} images/s"
        if is_number(done.get("images_per_second"))
        else "",
    ]
    best = (
        f" Best on validation: {percent(done.get('val_top1'))}"
        if is_number(done.get("val_top1"))
        else ""
    )
    at = f", at epoch {number(done['best_epoch'])}" if is_number(done.get("best_epoch")) else ""
    said = ", ".join(part for part in parts if part)
    return tag("p", (said + "." if said else "") + (best + at + "." if best else ""))
