"""What the exported model gets wrong: confusions, classes, and the worst mistakes as pictures."""

import numpy as np

from foveate.report.folder import Folder
from foveate.report.html import Child, Html, folded, join, missing, percent, short, table, tag
from foveate.report.pictures import overlay, picture
from foveate.report.plots import heat_map
from foveate.report.scores import confusion, precision_and_recall, softmax

MOST_IN_A_MAP = 30
MOST_CONFUSIONS = 20
MOST_CLASSES = 500


def section(folder: Folder) -> Html:
    """Mistakes on the test split, or that it has not been tested yet."""
    logits, targets = folder.arrays.get("logits"), folder.arrays.get("targets")
    if logits is None or targets is None:
        return missing("The model has not been tested yet, so its mistakes are not known.")
    predicted, labels = logits.argmax(axis=1), folder.labels
    matrix = confusion(predicted, targets, logits.shape[1])
    wrong = int((predicted != targets).sum())
    said = f"{wrong:,} of {len(targets):,} test images are taken for another class."
    shown = heat_map("Confusion matrix", matrix, labels) if len(matrix) <= MOST_IN_A_MAP else None
    return join(
        [
            tag("p", said),
            shown,
            _confusions(matrix, labels),
            _worst(folder, predicted),
            _classes(matrix, labels),
        ]
    )


def _confusions(matrix: np.ndarray, labels: list[str]) -> Html | None:
    """The pairs that are mixed up most."""
    off = matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype))
    most = MOST_CONFUSIONS if len(matrix) > MOST_IN_A_MAP else 5
    order = np.argsort(-off, axis=None, kind="stable")[:most]
    pairs = [divmod(int(i), len(matrix)) for i in order if off.flat[i]]
    if not pairs:
        return None
    lines: list[list[Child]] = [
        [short(labels[i]), short(labels[j]), int(off[i, j]), percent(off[i, j] / matrix[i].sum())]
        for i, j in pairs
    ]
    head: list[Child] = ["true", "taken for", "times", "share of the class"]
    return join(
        [tag("h3", "Most frequent confusions"), table(head, lines, label="Confusions", text=2)]
    )


def _worst(folder: Folder, predicted: np.ndarray) -> Html | None:
    arrays = folder.arrays
    indices, images = arrays.get("worst_index"), arrays.get("worst_images")
    if indices is None or images is None or len(indices) == 0 or len(images) != len(indices):
        return None
    sure = softmax(arrays["logits"]).max(axis=1)
    cards = [
        _mistake(folder, k, i, int(predicted[i]), float(sure[i]))
        for k, i in enumerate(indices.tolist())
        if 0 <= i < len(predicted)
    ]
    note = (
        "The mistakes of which the model was surest. Beside each image: what spoke for its answer "
        "(Grad-CAM of the trained model); the brighter, the more."
    )
    shown = tag("div", cards, class_="mistakes")
    return join([tag("h3", "The worst mistakes"), tag("p", note), shown])


def _mistake(folder: Folder, k: int, i: int, predicted: int, sure: float) -> Html:
    """The k-th of the worst mistakes, which is test image i."""
    images, targets = folder.arrays["worst_images"], folder.arrays["targets"]
    maps, names = folder.arrays.get("worst_saliency"), folder.arrays.get("worst_names")
    true, said = (short(folder.labels[c], 30) for c in (int(targets[i]), predicted))
    pair = [picture(images[k], f"a test image of {true}")]
    if maps is not None and maps.shape == images.shape[:3]:
        pair.append(picture(overlay(images[k], maps[k]), f"where the evidence for {said} lies"))
    name = short(names[k], 48) if names is not None and k < len(names) else f"test image {i}"
    words = tag("p", tag("b", said), f" {percent(sure)} sure; is ", tag("b", true))
    return tag("div", tag("div", pair, class_="pair"), words, tag("p", name, class_="note"))


def _classes(matrix: np.ndarray, labels: list[str]) -> Html:
    precision, recall = precision_and_recall(matrix)
    order = np.argsort(np.nan_to_num(recall, nan=2.0), kind="stable")[:MOST_CLASSES]

    def line(i: int) -> list[Child]:
        share = 0.0 if np.isnan(recall[i]) else recall[i]
        meter = tag("span", tag("i", style=f"width:{100 * share:.0f}%"), class_="meter")
        return [
            short(labels[i]),
            int(matrix[i].sum()),
            percent(float(precision[i])),
            join([meter, percent(float(recall[i]))]),
        ]

    head: list[Child] = ["class", "test images", "precision", "recall"]
    lines = [line(int(i)) for i in order]
    heading = tag("h3", "Classes, the weakest first")
    if len(lines) <= MOST_IN_A_MAP:
        return join([heading, table(head, lines, label="Classes")])
    rest = table(head, lines[MOST_IN_A_MAP:], label="Classes, continued")
    return join(
        [
            heading,
            table(head, lines[:MOST_IN_A_MAP], label="Classes"),
            folded(f"{len(lines) - MOST_IN_A_MAP} more", rest),
        ]
    )
