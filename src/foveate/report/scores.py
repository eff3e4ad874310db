"""The statistics of a report: intervals, confusion, calibration, Pareto fronts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def wilson(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """The interval of a share seen in `n` trials, 95% by default.

    Source: Wilson, "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22 (1927).
    """
    if n <= 0:
        return 0.0, 1.0
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities (N, K) of logits (N, K)."""
    shifted = logits.astype(np.float64) / temperature
    shifted -= shifted.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def confusion(predicted: np.ndarray, targets: np.ndarray, classes: int) -> np.ndarray:
    """Counts (K, K): rows are the true classes, columns the predicted ones."""
    pairs = targets.astype(np.int64) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def precision_and_recall(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a confusion matrix, a figure per class; NaN where it was never said or never there."""
    hits = matrix.diagonal().astype(float)
    with np.errstate(invalid="ignore"):
        return hits / matrix.sum(axis=0), hits / matrix.sum(axis=1)


@dataclass(frozen=True)
class Bin:
    """The predictions whose confidence lies in (low, high]: their mean confidence and accuracy."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> list[Bin]:
    """The bins of equal width that hold a prediction."""
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == targets
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    held = [(i, index == i) for i in range(bins) if (index == i).any()]
    return [
        Bin(
            low=i / bins,
            high=(i + 1) / bins,
            count=int(those.sum()),
            confidence=float(confidence[those].mean()),
            accuracy=float(hit[those].mean()),
        )
        for i, those in held
    ]


def expected_calibration_error(found: Sequence[Bin]) -> float:
    """The mean distance of accuracy and confidence over the bins, weighted by their counts.

    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning", AAAI 2015.
    """
    total = sum(b.count for b in found)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / total if total else 0.0


def pareto(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Those that no other beats in both (lower cost, higher gain), in the order of their cost."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i])):
        if not front or gains[i] > gains[front[-1]]:
            front.append(i)
    return front
