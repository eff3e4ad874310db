"""Calibration: whether the model is right as often as it says."""

import numpy as np

from foveate.report.folder import Folder
from foveate.report.html import Html, is_number, join, missing, number, percent, tag
from foveate.report.plots import reliability_diagram
from foveate.report.scores import expected_calibration_error, reliability, softmax

BINS = 15


def section(folder: Folder) -> Html:
    """The reliability diagram, also after temperature scaling where a temperature is known."""
    logits, targets = folder.arrays.get("logits"), folder.arrays.get("targets")
    if logits is None or targets is None:
        return missing("The model has not been tested yet, so its calibration is not known.")
    temperature = folder.get("test", "temperature")
    scaled = is_number(temperature) and temperature > 0
    plain, words = _diagram("As exported", logits, targets, 1.0, "a")
    plots, said = [plain], [words]
    if scaled:
        after, words = _diagram(
            f"After temperature scaling, T = {number(temperature)}",
            logits,
            targets,
            temperature,
            "c",
        )
        plots.append(after)
        said.append(f"after temperature scaling {words}")
    explained = (
        f"The expected calibration error (ECE, {BINS} bins) is {', '.join(said)}. Points on the "
        "dotted line would be right as often as they are sure; below it the model is too sure. "
        "Larger dots hold more images."
    )
    return join([tag("p", explained), tag("div", plots, class_="plots")])


def _diagram(
    title: str, logits: np.ndarray, targets: np.ndarray, temperature: float, colour: str
) -> tuple[Html, str]:
    bins = reliability(softmax(logits, temperature), targets, BINS)
    return reliability_diagram(title, bins, colour), percent(expected_calibration_error(bins), 2)
