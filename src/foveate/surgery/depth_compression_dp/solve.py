"""Which activations to keep and where to cut, solved exactly for given tables.

Convolutions stand in a row between positions 0 .. n. Two choices nest: runs between
kept positions lose the activations inside, at a price of accuracy; each run is then
cut where its pieces, every piece merged to one convolution, take least time. The
second is one shortest path for all runs, the first a path through those under a budget.

Source: depth_compression_dp (arXiv 2301.12187, sections 4.1 and 4.2).
"""

import math
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


def solve(
    times: Table, importance: Table, n: int, budget: float, ticks: int = 10_000
) -> Choice | None:
    """The most important row that takes no more than a budget.

    Args:
        times: of pieces merged to one convolution, in seconds.
        importance: of runs without the activations inside; the more, the better.
        n: the last position.
        budget: of the whole row, in seconds.
        ticks: that the budget has; the time of each run counts in whole ones, rounded up,
            so that the budget is kept whatever they are.

    Returns: the choice, of several the fastest, or None if the budget is too small.
    """
    runs = fastest_cuts(times, n)
    worth = np.full((n + 1, ticks + 1), -math.inf)  # [position, ticks that were spent exactly]
    came = np.full((n + 1, ticks + 1), -1)
    worth[0, 0] = 0.0
    for j in range(1, n + 1):
        for i in range(j):
            if (i, j) not in runs or (i, j) not in importance:
                continue
            spent = _ticks(runs[i, j][0], budget, ticks)
            if spent > ticks:
                continue
            given = worth[i, : ticks + 1 - spent] + importance[i, j]
            better = given > worth[j, spent:]
            worth[j, spent:][better] = given[better]
            came[j, spent:][better] = i
    if worth[n].max() == -math.inf:
        return None
    at, left = n, int(worth[n].argmax())  # argmax takes the first, which is the fastest
    kept, cuts, seconds = [n], {0}, 0.0
    while at:
        before = int(came[at, left])
        seconds += runs[before, at][0]
        cuts |= {*runs[before, at][1]}
        left -= _ticks(runs[before, at][0], budget, ticks)
        at = before
        kept.append(at)
    return Choice(tuple(reversed(kept)), tuple(sorted(cuts)), float(worth[n].max()), seconds)


def _ticks(seconds: float, budget: float, ticks: int) -> int:
    return math.ceil(seconds / budget * ticks - 1e-6)
