"""Timing that a noisy machine does not fool: warmed up, interleaved, with intervals."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_RESAMPLES = 1000


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
        low, high = _interval(seconds)
        return cls(float(np.median(seconds)), low, high, len(seconds))

    def milliseconds(self) -> dict[str, float]:
        """Median and bounds in milliseconds, JSON-ready."""
        return {name: getattr(self, name) * 1e3 for name in ("median", "low", "high")}


@dataclass(frozen=True)
class Ratio:
    """Time of a over time of b, with a 95% interval; `inconclusive` where that crosses 1."""

    median: float
    low: float
    high: float
    verdict: str


def timing(call: Callable[[], Any], *, seconds: float = 1.0, least: int = 5) -> Timing:
    """Time a call for about `seconds`, and at least `least` times."""
    return Timing.of(_rounds({"": call}, seconds, least)[""])


def side_by_side(
    calls: Mapping[str, Callable[[], Any]], *, seconds: float = 1.0, least: int = 5
) -> dict[str, Timing]:
    """Time several calls in turn, so that whatever disturbs one disturbs all.

    Args:
        calls: what to time, by name.
        seconds: for each, about.
        least: fewest rounds.
    """
    taken = _rounds(calls, seconds * len(calls), least)
    return {name: Timing.of(values) for name, values in taken.items()}


def paired(
    a: Callable[[], Any], b: Callable[[], Any], *, seconds: float = 2.0, least: int = 10
) -> Ratio:
    """Compare two calls in interleaved pairs: the ratio of their times, a over b."""
    taken = _rounds({"a": a, "b": b}, seconds, least)
    ratios = taken["a"] / taken["b"]
    low, high = _interval(ratios)
    verdict = "faster" if high < 1 else "slower" if low > 1 else "inconclusive"
    return Ratio(float(np.median(ratios)), low, high, verdict)


def _rounds(
    calls: Mapping[str, Callable[[], Any]], seconds: float, least: int
) -> dict[str, np.ndarray]:
    """Seconds of each call in every round, after two rounds that do not count."""
    names = list(calls)
    rows: list[list[float]] = []
    end = float("inf")
    for turn in range(100_000):
        if turn == 2:
            end = time.perf_counter() + seconds
        if turn >= least + 2 and time.perf_counter() > end:
            break
        order = names if turn % 2 else names[::-1]
        row = {name: _seconds(calls[name]) for name in order}
        rows.append([row[name] for name in names])
    table = np.array(rows[2:])
    return {name: table[:, i] for i, name in enumerate(names)}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _interval(values: np.ndarray) -> tuple[float, float]:
    draws = np.random.default_rng(0).choice(values, (_RESAMPLES, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return float(low), float(high)
