"""The report's statistics against closed forms and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from foveate.report.scores import (
    confusion,
    expected_calibration_error,
    pareto,
    precision_and_recall,
    reliability,
    softmax,
    wilson,
)


def test_wilson_solves_its_own_equation():
    """The bounds p are where |share - p| = z sqrt(p (1 - p) / n)."""
    for share, n in [(0.9, 50), (0.5, 10), (0.973, 360)]:
        for bound in wilson(share, n, z=1.96):
            assert abs(share - bound) == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / n))


def test_wilson_at_the_ends():
    z = 1.959964
    assert wilson(0.0, 10) == pytest.approx((0.0, z**2 / (10 + z**2)))
    assert wilson(1.0, 10) == pytest.approx((10 / (10 + z**2), 1.0))
    assert wilson(0.0, 0) == (0.0, 1.0)


def two_bins() -> tuple[np.ndarray, np.ndarray]:
    """Ten predictions 90% sure of which 6 are right, ten 60% sure of which 9 are right."""
    sure = np.repeat([0.9, 0.6], 10)
    hit = np.r_[np.arange(10) < 6, np.arange(10) < 9]
    return np.stack([sure, 1 - sure], axis=1), np.where(hit, 0, 1)


def test_ece_is_the_weighted_gap_of_confidence_and_accuracy():
    bins = reliability(*two_bins(), bins=15)
    assert [(b.count, b.accuracy) for b in bins] == [(10, 0.9), (10, 0.6)]
    assert expected_calibration_error(bins) == pytest.approx(0.5 * 0.3 + 0.5 * 0.3)


def test_ece_is_zero_when_it_is_right_as_often_as_sure():
    probabilities = np.tile([0.8, 0.2], (10, 1))
    bins = reliability(probabilities, np.r_[np.zeros(8, int), np.ones(2, int)])
    assert expected_calibration_error(bins) == pytest.approx(0)
    assert expected_calibration_error([]) == 0


def test_every_prediction_falls_into_one_bin():
    probabilities = softmax(np.random.default_rng(0).normal(size=(500, 7)) * 4)
    bins = reliability(probabilities, np.zeros(500, int))
    assert sum(b.count for b in bins) == 500
    assert all(b.low < b.confidence <= b.high for b in bins)


def test_confusion_precision_and_recall_agree_with_scikit_learn():
    chance = np.random.default_rng(1)
    targets, predicted = chance.integers(0, 5, 300), chance.integers(0, 5, 300)
    matrix = confusion(predicted, targets, 5)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(targets, predicted))
    precision, recall = precision_and_recall(matrix)
    np.testing.assert_allclose(precision, metrics.precision_score(targets, predicted, average=None))
    np.testing.assert_allclose(recall, metrics.recall_score(targets, predicted, average=None))


def test_softmax_of_large_logits_with_a_temperature():
    found = softmax(np.array([[1000.0, 998.0]]), temperature=2.0)
    np.testing.assert_allclose(found, [[1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]])


def test_the_pareto_front_holds_those_that_nothing_beats():
    costs, gains = [1.0, 2.0, 2.0, 3.0, 0.5], [0.5, 0.7, 0.6, 0.7, 0.1]
    assert pareto(costs, gains) == [4, 0, 1]
