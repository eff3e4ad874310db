"""Timing that a noisy machine does not fool: warmed up, interleaved, with intervals."""

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


def _rounds(
    calls: Mapping[str, Callable[[], Any]], seconds: float, least: int, settled: bool = False
) -> dict[str, np.ndarray]:
    """Seconds of each call in every round, once all are warm.

    The order of the calls turns round from round to round, so that none is
    always the one that finds the caches cold.
    """
    for call in calls.values():
        _warm_up(call)
    names = list(calls)
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < least or time.perf_counter() < end:
        order = names if len(rows) % 2 else names[::-1]
        row = {}
        for name in order:
            if settled:
                calls[name]()
            row[name] = _seconds(calls[name])
        rows.append([row[name] for name in names])
    table = np.array(rows)
    return {name: table[:, i] for i, name in enumerate(names)}


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
