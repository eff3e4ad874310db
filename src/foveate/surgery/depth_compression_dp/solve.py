"""Which activations to keep and where to cut, solved exactly for given tables.

Convolutions stand in a row between positions 0 .. n. Two choices nest: runs between
kept positions lose the activations inside, at a price of accuracy; each run is then
cut where its pieces, every piece merged to one convolution, take least time. The
second is one shortest path for all runs, the first a path through those under a budget.

Source: depth_compression_dp (arXiv 2301.12187, sections 4.1 and 4.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Table = Mapping[tuple[int, int], float]
"""A number for pieces (i, j) of a row, i < j; pieces that it lacks are not allowed."""


@dataclass(frozen=True)
class Choice:
    """What a row becomes.

    Attributes:
        kept: positions whose activations stay, 0 and n among them, in order.
        cuts: positions between which layers are merged; those kept are among them.
        importance: sum of the runs' importance.
        seconds: sum of the pieces' times.
    """

    kept: tuple[int, ...]
    cuts: tuple[int, ...]
    importance: float
    seconds: float


def fastest_cuts(times: Table, n: int) -> dict[tuple[int, int], tuple[float, tuple[int, ...]]]:
    """For every run (i, j) the least time of its pieces together, and where it is cut for that.

    Of cuts that are as fast, the one with most pieces is taken, as it merges least.

    Args:
        times: of pieces merged to one convolution, in seconds.
        n: the last position.
    """
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
    for i in range(n):
        for j in range(i + 1, n + 1):
            ways = [
                (best[i, k][0] + times[k, j], (*best[i, k][1], j))
                for k in range(i + 1, j)
                if (i, k) in best and (k, j) in times
            ]
            if (i, j) in times:
                ways.append((times[i, j], (i, j)))
            if ways:
                best[i, j] = min(ways, key=lambda way: (way[0], -len(way[1])))
    return best


def solve(times: Table, importance: Table, n: int, budget: float) -> Choice | None:
    """The most important row that takes no more than a budget.

    The paper counts time in whole ticks. Here each position keeps all ways to it of which none is
    both faster and more important than another, so times are what they are.

    Args:
        times: of pieces merged to one convolution, in seconds.
        importance: of runs without the activations inside; the more, the better.
        n: the last position.
        budget: of the whole row, in seconds.

    Returns: the choice, of several the fastest, or None if the budget is too small.
    """
    runs = fastest_cuts(times, n)
    ways = [_Ways(*np.zeros((2, 1)), *np.zeros((2, 1), int))]
    for j in range(1, n + 1):
        allowed = [i for i in range(j) if (i, j) in runs and (i, j) in importance]
        longer = [ways[i].then(i, runs[i, j][0], importance[i, j]) for i in allowed]
        ways.append(_Ways.best(longer, budget * (1 + 1e-9)))
    if not len(ways[n].seconds):
        return None
    at, way = n, len(ways[n].seconds) - 1  # the last is the most important
    worth, seconds = float(ways[n].worth[way]), float(ways[n].seconds[way])
    kept, cuts = [n], {0}
    while at:
        before, way = int(ways[at].position[way]), int(ways[at].way[way])
        cuts |= {*runs[before, at][1]}
        at = before
        kept.append(at)
    return Choice(tuple(reversed(kept)), tuple(sorted(cuts)), worth, seconds)


@dataclass(frozen=True)
class _Ways:
    """Ways to a position, the slower the more important.

    Attributes:
        seconds, worth: of each.
        position, way: the position before the last run, and which of the ways there.
    """

    seconds: np.ndarray
    worth: np.ndarray
    position: np.ndarray
    way: np.ndarray

    def then(self, here: int, seconds: float, worth: float) -> "_Ways":
        """Each with one run more."""
        count = len(self.seconds)
        came = np.full(count, here), np.arange(count)
        return _Ways(self.seconds + seconds, self.worth + worth, *came)

    @classmethod
    def best(cls, several: list["_Ways"], budget: float) -> "_Ways":
        """Those of several that keep a budget, and that none faster is as important as."""
        fields = ("seconds", "worth", "position", "way")
        joined = [np.concatenate([np.zeros(0), *(getattr(w, f) for w in several)]) for f in fields]
        order = np.lexsort((-joined[1], joined[0]))
        seconds, worth = joined[0][order], joined[1][order]
        before = np.concatenate([[-np.inf], np.maximum.accumulate(worth)])[:-1]
        order = order[(seconds <= budget) & (worth > before)]
        return cls(*(values[order] for values in joined))
