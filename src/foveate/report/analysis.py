"""What the report shows of single images: samples, the worst mistakes, and why they were made."""

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from foveate.report.pictures import LARGEST
from foveate.report.scores import softmax

if TYPE_CHECKING:
    from foveate.data import Split
    from foveate.vision import VisionModel

CLASSES_SHOWN = 40


def analyse(
    model: "VisionModel",
    predictor_logits: np.ndarray,
    split: "Split",
    *,
    worst: int = 16,
    samples_per_class: int = 4,
) -> dict[str, np.ndarray]:
    """Gather what `analysis.npz` holds.

    Args:
        model: explains the mistakes; the trained model, since an exported one has no gradients.
        predictor_logits: (N, K) of the exported model on `split`, in its order.
        split: the images and their targets.
        worst: how many of the most confident mistakes to keep.
        samples_per_class: how many images to show of each of the first 40 classes.

    Returns: logits float32 (N, K), targets int64 (N,); samples uint8 (S, h, w, 3),
        sample_targets (S,); worst_index (M,), worst_images uint8 (M, h, w, 3),
        worst_saliency float32 (M, h, w) in [0, 1] and worst_names (M,). All images are
        square as the model sees them, at most 96 pixels, and never enlarged.
    """
    from foveate.explain import saliency

    logits = np.asarray(predictor_logits, np.float32)
    targets = np.asarray(split.targets, np.int64)
    mistakes = most_confident_mistakes(logits, targets, worst)
    samples = first_of_each(targets, min(logits.shape[1], CLASSES_SHOWN), samples_per_class)
    side = model.preprocess.size
    read = {int(i): split.read(int(i)) for i in {*mistakes, *samples}}
    shown = thumbnail_side(list(read.values()), side)
    seen = stack([square(read[int(i)], side) for i in mistakes], side)
    predicted = logits[mistakes].argmax(axis=1)
    maps = saliency(model, np.ascontiguousarray(seen.transpose(0, 3, 1, 2)), predicted)
    return {
        "logits": logits,
        "targets": targets,
        "samples": stack([square(read[int(i)], shown) for i in samples], shown),
        "sample_targets": targets[samples],
        "worst_index": mistakes,
        "worst_images": stack([square(read[int(i)], shown) for i in mistakes], shown),
        "worst_saliency": shrink(maps, shown),
        "worst_names": np.array([split.names[int(i)] for i in mistakes], dtype=np.str_),
    }


def most_confident_mistakes(logits: np.ndarray, targets: np.ndarray, limit: int) -> np.ndarray:
    """Indices of the wrong predictions, the most confident first."""
    probabilities = softmax(logits)
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != targets)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order][:limit].astype(np.int64)


def first_of_each(targets: np.ndarray, classes: int, limit: int) -> np.ndarray:
    """Indices of the first images of each class, class by class."""
    found = [np.flatnonzero(targets == label)[:limit] for label in range(classes)]
    return np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)


def thumbnail_side(images: list[np.ndarray], side: int) -> int:
    """The side to show: no larger than the images themselves, the model's input, and 96 pixels."""
    if not images:
        return min(side, LARGEST)
    return max(1, min(LARGEST, side, int(np.median([min(i.shape[:2]) for i in images]))))


def square(image: np.ndarray, side: int) -> np.ndarray:
    """The centre of an image (H, W, 3) as (side, side, 3)."""
    fitted = ImageOps.fit(Image.fromarray(image), (side, side), Image.Resampling.BICUBIC)
    return np.asarray(fitted, np.uint8)


def stack(images: list[np.ndarray], side: int) -> np.ndarray:
    """Squares (side, side, 3) as one array, also when there are none."""
    return np.stack(images) if images else np.zeros((0, side, side, 3), np.uint8)


def shrink(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (M, H, W) in [0, 1] as (M, side, side)."""
    resized = [
        np.asarray(Image.fromarray(m).resize((side, side), Image.Resampling.BILINEAR)) for m in maps
    ]
    return np.clip(np.stack(resized), 0, 1) if resized else np.zeros((0, side, side), np.float32)
