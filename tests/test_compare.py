"""Mixers stand in one skeleton, are trained alike, and are told apart only where they differ."""

import json

import pytest
import torch

from foveate.compare import Asked, compare, mixers
from foveate.errors import FoveateError
from foveate.report.comparison import comparison_page


@pytest.fixture(scope="module")
def facts():
    asked = Asked(mixers=("identity", "depthwise3"), epochs=1.0, seeds=2, size=8, budget=1_500_000)
    return compare(asked)


def test_rows_are_ordered_by_accuracy_and_cost_the_same(facts):
    tops = [row["top1"] for row in facts["mixers"]]
    assert tops == sorted(tops, reverse=True)
    for row in facts["mixers"]:
        assert abs(row["macs"] / 1_500_000 - 1) < 0.25
        assert len(row["accuracies"]) == 2
        low, high = row["interval"]
        assert 0 <= low <= row["top1"] <= high <= 1
        assert row["latency_ms"]["median"] > 0


def test_the_best_is_behind_nobody(facts):
    best, other = facts["mixers"]
    assert best["verdict"] == "best"
    assert best["behind"]["points"] == 0
    assert other["verdict"] in ("worse", "inconclusive")
    assert (other["behind"]["low"] > 0) == (other["verdict"] == "worse")


def test_the_page(facts):
    page = comparison_page(json.loads(json.dumps(facts)))
    assert "2 token mixers at equal multiply-adds" in page
    assert "depthwise3" in page


def test_the_same_question_has_the_same_answer(facts):
    again = compare(
        Asked(mixers=("identity", "depthwise3"), epochs=1.0, seeds=2, size=8, budget=1_500_000)
    )
    assert [r["accuracies"] for r in again["mixers"]] == [r["accuracies"] for r in facts["mixers"]]


@pytest.mark.parametrize("name", mixers())
def test_every_mixer_keeps_the_shape(name):
    x = torch.zeros(2, 32, 9, 10)
    assert mixers()[name](32).eval()(x).shape == x.shape


@pytest.mark.parametrize(
    ("fields", "mention"),
    [
        ({"mixers": ("identity",)}, "two mixers"),
        ({"mixers": ("identity", "deepwise3")}, "depthwise3"),
        ({"equal": "flops"}, "macs or params"),
        ({"epochs": 0}, "--epochs"),
        ({"seeds": 0}, "--seeds"),
        ({"budget": -5}, "--budget"),
        ({"size": 0}, "--size"),
    ],
)
def test_wishes_that_cannot_be_met(fields, mention):
    with pytest.raises(FoveateError, match=mention):
        Asked(**{"mixers": ("identity", "depthwise3"), **fields})
