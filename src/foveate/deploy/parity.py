"""How far a changed model's outputs are from the original's."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parity:
    """Two sets of logits compared.

    Attributes:
        max_error: the largest difference of a logit.
        cosine: mean cosine of the logits of an image.
        agreement: share of images that get the same label.
        top1_before, top1_after: accuracies in [0, 1], or None without targets.
    """

    max_error: float
    cosine: float
    agreement: float
    top1_before: float | None
    top1_after: float | None


def parity(before: np.ndarray, after: np.ndarray, targets: np.ndarray | None = None) -> Parity:
    """Compare logits (N, K) of a model with those of its edited or exported form.

    Args:
        before, after: of the same images.
        targets: their classes (N,), if known.
    """
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosine = (before * after).sum(1) / np.maximum(norms, 1e-12)
    chosen = before.argmax(1), after.argmax(1)
    top1 = [None, None] if targets is None else [float((c == targets).mean()) for c in chosen]
    return Parity(
        max_error=float(np.abs(before - after).max()),
        cosine=float(cosine.mean()),
        agreement=float((chosen[0] == chosen[1]).mean()),
        top1_before=top1[0],
        top1_after=top1[1],
    )
