"""Dividing images into train, val and test where the source does not say."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from foveate.data import chance

VAL_ENOUGH = 2500
"""Images that tell accuracies a point apart; what is more serves better in training."""


def divide(
    targets: np.ndarray,
    groups: Sequence[Hashable] | None,
    given: Sequence[str | None] | None,
    val_share: float | None,
    test_share: float,
    seed: int,
) -> np.ndarray:
    """A stratified, seeded split.

    Images of one group (the same content) are never torn apart. Every class
    gives at least one image to each split if it has three or more.

    Args:
        targets: int (N,).
        groups: a key an image; images with equal keys stay together.
        given: splits that the source tells, an entry an image, or None.
        val_share, test_share: shares of a class that are held out; without a
            `val_share`, a tenth and at most `VAL_ENOUGH` images in all.
        seed: decides who goes where.

    Returns: array of str (N,): train, val or test.
    """
    of = np.array([name or "" for name in given] if given else [""] * len(targets), dtype="<U5")
    if given and "train" in of:
        of[of == ""] = "train"
    has = set(of.tolist())
    pool = "train" if "train" in has else ""
    if val_share is None:
        val_share = min(0.1, VAL_ENOUGH / max((of == pool).sum(), 1))
    wanted = {
        name: share
        for name, share in (("test", test_share), ("val", val_share))
        if name not in has and share > 0
    }
    for label in np.unique(targets):
        members = np.flatnonzero((targets == label) & (of == pool))
        _hold_out(of, members, groups, wanted, seed, int(label))
    of[of == ""] = "train"
    return of


def _hold_out(
    of: np.ndarray,
    members: np.ndarray,
    groups: Sequence[Hashable] | None,
    wanted: dict[str, float],
    seed: int,
    label: int,
) -> None:
    """Move shares of one class's `members` out of the pool, whole groups at a time."""
    together: dict[Hashable, list[int]] = defaultdict(list)
    for i in members:
        together[groups[i] if groups is not None else int(i)].append(int(i))
    clusters = list(together.values())
    order = chance.permutation(seed, label, len(clusters))
    queue = [clusters[i] for i in order]
    for name, share in wanted.items():
        quota = max(1, round(share * len(members))) if len(members) > 2 else 0
        while quota > 0 and len(queue) > 1:
            cluster = queue.pop()
            of[cluster] = name
            quota -= len(cluster)
