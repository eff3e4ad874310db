"""Intervals, so that no figure stands alone."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000

Estimate = tuple[float, float, float]
"""A figure and the bounds of its interval."""


def median_interval(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The median (N,) and its percentile bootstrap interval."""
    return bootstrap(values, lambda draws: np.median(draws, axis=1), confidence)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> Estimate:
    """The mean of few values (N,) and Student's interval, exact where they are normal."""
    from scipy.stats import t

    values = np.asarray(values, np.float64)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, float("-inf"), float("inf")
    half = float(t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    confidence: float = 0.95,
) -> Estimate:
    """A statistic and its percentile bootstrap interval; the same values give the same interval.

    Args:
        values: (N, ...), resampled along N.
        statistic: maps resamples (R, N, ...) to (R,).
        confidence: share of intervals that hold the truth, were all done again.
    """
    values = np.asarray(values, np.float64)
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(statistic(values[draws]), (tail, 1 - tail))
    return float(statistic(values[None])[0]), float(low), float(high)


@dataclass(frozen=True)
class Exponent:
    """How y grows with x: y = scale * x ** power, with the 95% interval of the power.

    Attributes:
        r2: share of the variance of log y that the fit explains.
    """

    power: float
    low: float
    high: float
    scale: float
    r2: float


def exponent(x: np.ndarray, y: np.ndarray) -> Exponent:
    """Fit a power law by least squares on logarithms.

    Args:
        x, y: positive, (N,), at least three points.
    """
    log_x, log_y = np.log(np.asarray(x, np.float64)), np.log(np.asarray(y, np.float64))
    power, offset = np.polyfit(log_x, log_y, 1)
    rest = log_y - (power * log_x + offset)
    spread = np.square(log_x - log_x.mean()).sum()
    from scipy.stats import t

    freedom = len(log_x) - 2
    half = t.ppf(0.975, freedom) * np.sqrt(np.square(rest).sum() / freedom / spread)
    total = np.square(log_y - log_y.mean()).sum()
    r2 = 1.0 if total == 0 else 1 - np.square(rest).sum() / total
    return Exponent(
        float(power), float(power - half), float(power + half), float(np.exp(offset)), float(r2)
    )


def correlation(x: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Estimate:
    """Pearson's correlation of (N,) and (N,), with its bootstrap interval."""
    pairs = np.stack([x, y], axis=1).astype(np.float64)

    def pearson(draws: np.ndarray) -> np.ndarray:
        centred = draws - draws.mean(axis=1, keepdims=True)
        products = (centred[..., 0] * centred[..., 1]).sum(axis=1)
        norms = np.sqrt(np.square(centred).sum(axis=1).prod(axis=-1))
        return products / np.maximum(norms, 1e-300)

    return bootstrap(pairs, pearson, confidence)
