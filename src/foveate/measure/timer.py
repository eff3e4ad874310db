"""Timing that a noisy machine does not fool: warmed up, interleaved, with intervals."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foveate.measure.intervals import median_interval

NOISY = 0.2
"""A machine is too noisy to tell where an interval is wider than this share of its median."""
STABLE = 0.05
"""Warm-up ends when the fastest of three calls is within this share of the fastest three before."""


@dataclass(frozen=True)
class Timing:
    """Seconds a call: median, with the bounds of its 95% bootstrap interval, over `runs` calls."""

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: np.ndarray) -> "Timing":
        """From the seconds of each call."""
        return cls(*median_interval(seconds), len(seconds))

    @property
    def is_noisy(self) -> bool:
        """Whether the machine was too noisy for the median to mean much."""
        return self.high - self.low > NOISY * self.median

    def milliseconds(self) -> dict[str, float]:
        """Median and bounds in milliseconds, JSON-ready."""
        return {name: getattr(self, name) * 1e3 for name in ("median", "low", "high")}


@dataclass(frozen=True)
class Ratio:
    """Time of a over time of b: the median of interleaved pairs, with its 99% interval.

    Attributes:
        a, b: median seconds of each.
        verdict: a is `faster` or `slower` than b, or it is `inconclusive`:
            the interval holds 1.
    """

    median: float
    low: float
    high: float
    pairs: int
    a: float
    b: float

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> "Ratio":
        """From the seconds of each call, in pairs."""
        medians = float(np.median(a)), float(np.median(b))
        return cls(*median_interval(a / b, 0.99), len(a), *medians)

    @property
    def verdict(self) -> str:
        return "faster" if self.high < 1 else "slower" if self.low > 1 else "inconclusive"

    @property
    def is_noisy(self) -> bool:
        """Whether the machine was too noisy to tell much."""
        return self.high - self.low > NOISY * self.median


def timing(call: Callable[[], Any], *, seconds: float = 1.0, least: int = 5) -> Timing:
    """Time a call for about `seconds`, and at least `least` times."""
    return Timing.of(_rounds({"": call}, seconds, least)[""])


def side_by_side(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 1.0,
    least: int = 5,
    settled: bool = False,
) -> dict[str, Timing]:
    """Time several calls in turn, so that whatever disturbs one disturbs all.

    Args:
        calls: what to time, by name.
        seconds: for each, about.
        least: fewest rounds.
        settled: time the second of two calls, as of a program that is in service and
            finds its weights in the caches, rather than those of the call before it.
    """
    taken = _rounds(calls, seconds * len(calls), least, settled)
    return {name: Timing.of(values) for name, values in taken.items()}


def paired(
    a: Callable[[], Any],
    b: Callable[[], Any],
    *,
    seconds: float = 2.0,
    least: int = 10,
    settled: bool = False,
) -> Ratio:
    """Compare two calls in interleaved pairs: the ratio of their times, a over b.

    Args:
        settled: as `side_by_side` takes it.
    """
    taken = _rounds({"a": a, "b": b}, seconds, least, settled)
    return Ratio.of(taken["a"], taken["b"])


def race(
    calls: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 5.0,
    least: int = 8,
    settled: bool = False,
) -> dict[str, Timing]:
    """Time several calls in turn until the fastest is told from the others; it comes first.

    Now and then those that are clearly slower than the fastest drop out, so that the time
    goes to those that are hard to tell apart. The time of a call is the fastest's time
    multiplied by the median of its ratios to it, over the rounds that it was in: a pace
    that changes meanwhile changes no order. So its interval is that of the comparison:
    where the fastest's time lies within it, the two are not told apart.

    Args:
        calls: what to time, by name.
        seconds: at most, for all of them together; one that is left alone takes its share.
        least: fewest rounds before a call drops out.
        settled: as `side_by_side` takes it.
    """
    for call in calls.values():
        _warm_up(call)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    running, check, best = list(calls), least, ""
    start = time.perf_counter()
    for rounds in itertools.count(1):
        _round({name: calls[name] for name in running}, taken, settled)
        gone = time.perf_counter() - start
        over = rounds >= least and gone >= seconds / (len(calls) if len(running) == 1 else 1)
        if over or rounds == check:
            check += -(-check // 2)
            best = min(running, key=lambda name: np.median(taken[name]))
            running = [name for name in running if not _is_slower(taken[name], taken[best])]
        if over:
            break
    found = {name: _against(np.array(taken[best]), np.array(taken[name])) for name in calls}
    found[best] = Timing.of(np.array(taken[best]))
    return dict(sorted(found.items(), key=lambda item: (item[0] != best, item[1].median)))


def _is_slower(seconds: list[float], best: list[float]) -> bool:
    """Whether more rounds than chance explains were slower (a sign test, one in 200)."""
    rounds = len(seconds)
    slower = sum(mine > other for mine, other in zip(seconds, best, strict=True))
    return slower > rounds / 2 + 1.29 * rounds**0.5


def _against(best: np.ndarray, seconds: np.ndarray) -> Timing:
    """The time of a call by its ratios to the fastest, in its first rounds."""
    ratio = Ratio.of(seconds, best[: len(seconds)])
    scale = float(np.median(best))
    return Timing(scale * ratio.median, scale * ratio.low, scale * ratio.high, ratio.pairs)


def _rounds(
    calls: Mapping[str, Callable[[], Any]], seconds: float, least: int, settled: bool = False
) -> dict[str, np.ndarray]:
    """Seconds of each call in every round, once all are warm."""
    for call in calls.values():
        _warm_up(call)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        _round(calls, taken, settled)
        rounds += 1
    return {name: np.array(values) for name, values in taken.items()}


def _round(
    calls: Mapping[str, Callable[[], Any]], taken: dict[str, list[float]], settled: bool
) -> None:
    """Time each call once more.

    The order of the calls turns round from round to round, so that none is
    always the one that finds the caches cold.
    """
    names = list(calls)
    for name in names if len(taken[names[0]]) % 2 else names[::-1]:
        if settled:
            calls[name]()
        taken[name].append(_seconds(calls[name]))


def _warm_up(call: Callable[[], Any], seconds: float = 1.0) -> None:
    """Call until it gets no faster, or for a while at most."""
    end = time.perf_counter() + seconds
    before = float("inf")
    while time.perf_counter() < end:
        now = min(_seconds(call) for _ in range(3))
        if now > (1 - STABLE) * before:
            return
        before = now


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
