"""The two nested programs against every choice there is."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest

from foveate.surgery.depth_compression_dp.solve import Choice, fastest_cuts, solve

pytestmark = pytest.mark.paper("depth_compression_dp")


def subsets(positions):
    return [c for size in range(len(positions) + 1) for c in combinations(positions, size)]


def every_choice(times, importance, n):
    """All sets A of kept positions, with all sets S of cuts that hold them."""
    for kept in subsets(range(1, n)):
        runs = list(pairwise((0, *kept, n)))
        if any(run not in importance for run in runs):
            continue
        worth = sum(importance[run] for run in runs)
        for more in subsets([k for k in range(1, n) if k not in kept]):
            cuts = tuple(sorted({0, n, *kept, *more}))
            if all(piece in times for piece in pairwise(cuts)):
                yield Choice((0, *kept, n), cuts, worth, sum(times[p] for p in pairwise(cuts)))


def tables(seed, n):
    """Whole times and any importance; some pieces are not allowed."""
    draw = np.random.default_rng(seed)
    pieces = [(i, j) for i in range(n) for j in range(i + 1, n + 1)]
    times = {p: float(draw.integers(1, 20)) for p in pieces}
    importance = {p: float(draw.normal()) for p in pieces}
    for table in (times, importance):
        for piece in pieces:
            if piece[1] > piece[0] + 1 and draw.random() < 0.25:
                del table[piece]
    return times, importance


@pytest.mark.parametrize("seed", range(40))
def test_no_choice_is_better(seed):
    n = 4 + seed % 4
    times, importance = tables(seed, n)
    choices = list(every_choice(times, importance, n))
    for budget in (8, 20, 35, 60):
        allowed = [choice for choice in choices if choice.seconds <= budget]
        found = solve(times, importance, n, budget)
        if not allowed:
            assert found is None
            continue
        assert found is not None
        best = max(choice.importance for choice in allowed)
        assert found.importance == pytest.approx(best)
        assert found in [
            Choice(c.kept, c.cuts, pytest.approx(c.importance), c.seconds) for c in allowed
        ]
        fastest = min(c.seconds for c in allowed if math.isclose(c.importance, best))
        assert found.seconds == fastest


@pytest.mark.parametrize("seed", range(10))
def test_the_first_stage_alone(seed):
    n = 6
    times, _ = tables(seed, n)
    for (i, j), (seconds, cuts) in fastest_cuts(times, n).items():
        ways = [
            (i, *inner, j)
            for inner in subsets(range(i + 1, j))
            if all(piece in times for piece in pairwise((i, *inner, j)))
        ]
        totals = [sum(times[p] for p in pairwise(way)) for way in ways]
        assert seconds == min(totals) == sum(times[p] for p in pairwise(cuts))


def test_budgets_that_are_just_kept_and_just_broken():
    times = {(0, 1): 0.1, (1, 2): 0.2, (2, 3): 0.3, (0, 2): 0.15, (1, 3): 0.35}
    importance = {(0, 1): 0.0, (1, 2): 0.0, (2, 3): 0.0, (0, 2): -1.0, (1, 3): -3.0}
    whole = solve(times, importance, 3, budget=0.6)
    assert whole is not None
    assert whole.kept == (0, 1, 2, 3)
    shallow = solve(times, importance, 3, budget=0.599)
    assert shallow is not None
    assert shallow.kept == shallow.cuts == (0, 2, 3)
    assert solve(times, importance, 3, budget=0.449) is None


def test_long_rows_take_no_long_time():
    """As many positions as MobileNetV2 has, with times and importance that are all different."""
    draw = np.random.default_rng(0)
    pieces = [(i, j) for i in range(53) for j in range(i + 1, min(i + 6, 53) + 1)]
    times = {p: draw.uniform(0.5, 1.5) * (p[1] - p[0]) ** 0.7 for p in pieces}
    importance = {p: -draw.uniform() * (p[1] - p[0] - 1) for p in pieces}
    most = sum(times[i, i + 1] for i in range(53))
    found = [solve(times, importance, 53, share * most) for share in (0.6, 0.8, 1.0)]
    worth = [choice.importance for choice in found if choice is not None]
    assert len(worth) == 3
    assert worth[0] < worth[1] < worth[2] == 0.0
