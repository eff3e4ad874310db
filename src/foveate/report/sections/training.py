"""How training went: loss, accuracy and learning rate over the epochs."""

from foveate.report.axes import whole_percent
from foveate.report.folder import Folder
from foveate.report.html import Html, is_number, join, missing, number, percent, tag
from foveate.report.plots import Series, curves


def section(folder: Folder) -> Html:
    """Curves, or that there are none yet."""
    if not folder.train and not folder.evaluations:
        return missing("Nothing has been trained yet.")
    plots = [
        curves("Loss", _both(folder, "loss"), x_name="epoch", y_name="loss"),
        curves(
            "Accuracy",
            _both(folder, "top1"),
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
            keys=[],
        ),
    ]
    return join([_words(folder), tag("div", plots, class_="plots")])


def _both(folder: Folder, key: str) -> list[Series]:
    """A figure on training and on validation images."""
    return [
        _series(folder.train, key, "train", "a"),
        _series(folder.evaluations, key, "validation", "b"),
    ]


def _series(lines: list[dict], key: str, name: str, colour: str) -> Series:
    whole = [line for line in lines if is_number(line.get("epoch")) and is_number(line.get(key))]
    return Series(name, [line["epoch"] for line in whole], [line[key] for line in whole], colour)


def _whole(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else number(value)


def _words(folder: Folder) -> Html:
    if not (done := folder.get("training")):
        return missing("Training is not finished: the curves go as far as it has come.")
    units = {
        "epochs": " epochs",
        "steps": " steps",
        "minutes": " minutes",
        "images_per_second": " images/s",
    }
    parts = [_whole(done[k]) + unit for k, unit in units.items() if is_number(done.get(k))]
    said = ", ".join(parts) + "." if parts else ""
    if is_number(done.get("val_top1")):
        at = f" at epoch {number(done['best_epoch'])}" if is_number(done.get("best_epoch")) else ""
        said += f" The best on validation: {percent(done['val_top1'])}{at}."
    return tag("p", said + _use_of_machine(done))


def _use_of_machine(done: dict) -> str:
    shares = {
        "share_of_roof": "used {} of this machine's best float32 arithmetic",
        "waited": "waited {} of their time for images",
    }
    parts = [said.format(percent(done[k])) for k, said in shares.items() if is_number(done.get(k))]
    return f" Its steps {' and '.join(parts)}." if parts else ""
