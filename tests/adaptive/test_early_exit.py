"""Stopping early: the thresholds, what is answered, and the work that is not done."""

import math

import numpy as np
import pytest
import torch

from foveate.adaptive.early_exit import (
    DAMPING,
    EarlyExit,
    exit_confidence,
    exit_logits,
    exit_macs,
    find_thresholds,
    geometric_shares,
    taken_exits,
)
from foveate.backbones import create_model
from foveate.data import open as open_data
from foveate.errors import FoveateError
from foveate.measure import count_each
from foveate.vision import Preprocess, VisionModel

LABELS = [str(i) for i in range(10)]


@pytest.fixture(scope="module")
def data():
    return open_data("digits")


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = create_model("dyn_perceiver_resnet_mini32", num_classes=10)
    return VisionModel(backbone, Preprocess(size=8), LABELS).eval()


@pytest.mark.paper("dyn_perceiver")
@pytest.mark.parametrize("ratio", [0.2, 1.0, 3.0])
def test_shares_are_the_authors(ratio):
    """Their way: powers of the ratio, then one factor after another, the later shares made up."""
    probs = [ratio**k for k in range(1, 5)]
    probs = [p / sum(probs) for p in probs]
    torch.testing.assert_close(
        torch.tensor(geometric_shares(ratio, (1, 1, 1, 1))), torch.tensor(probs).double()
    )
    for j in range(3):
        probs[j] *= DAMPING[j]
        left, later = 1 - sum(probs[: j + 1]), sum(probs[j + 1 :])
        for i in range(j + 1, 4):
            probs[i] *= left / later
    assert geometric_shares(ratio, DAMPING).tolist() == pytest.approx(probs)
    assert sum(probs) == pytest.approx(1)


@pytest.mark.paper("dyn_perceiver")
@pytest.mark.parametrize("shares", [(0.3, 0.3, 0.4), (0.9, 0.05, 0.05), (0.001, 0.5, 0.499)])
def test_thresholds_image_by_image(shares):
    """The authors' loop: walk down the images by confidence, and count those that are left."""
    confidence = np.random.default_rng(0).random((3, 200))
    expected = [1e8, 1e8, -1e8]
    gone = [False] * 200
    for k in range(2):
        wanted, seen = math.floor(200 * shares[k]), 0
        for i in sorted(range(200), key=lambda i: -confidence[k, i]):
            if not gone[i]:
                seen += 1
                if seen == wanted:
                    expected[k] = confidence[k, i]
                    break
        gone = [g or c >= expected[k] for g, c in zip(gone, confidence[k], strict=True)]
    found = find_thresholds(confidence, np.array(shares))
    assert np.clip(found, -1e8, 1e8).tolist() == expected
    first = [next(k for k in range(3) if confidence[k, i] >= expected[k]) for i in range(200)]
    assert taken_exits(confidence, found).tolist() == first


def spread_thresholds(model, images):
    """Such that images stop at every exit."""
    with torch.inference_mode():
        said = torch.stack(exit_logits(model, images)).softmax(2).amax(2)
    confidence = said.double().numpy()
    return find_thresholds(confidence, np.full(4, 0.25)) - 1e-6, confidence  # no ties of rounding


@pytest.mark.paper("dyn_perceiver")
@torch.inference_mode()
def test_answers_are_those_of_the_exits(model):
    images = torch.rand(32, 3, 8, 8)
    thresholds, confidence = spread_thresholds(model, images)
    stopped = EarlyExit(model, thresholds).run(images)
    assert stopped.exits.tolist() == taken_exits(confidence, thresholds).tolist()
    assert set(stopped.exits.tolist()) == {0, 1, 2, 3}
    said = torch.stack(exit_logits(model, images))
    expected = said[stopped.exits, torch.arange(32)]
    torch.testing.assert_close(stopped.logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.paper("dyn_perceiver")
def test_images_that_stop_cost_no_more(model):
    images = torch.rand(12, 3, 8, 8)
    thresholds, confidence = spread_thresholds(model, images)
    stopping = EarlyExit(model, thresholds)
    rows = []
    for stage in model.backbone.stages[1:]:
        stage.body.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    with torch.inference_mode():
        exits = stopping.run(images).exits
    assert rows == [(exits > 0).sum(), (exits > 1).sum()]
    spent = count_each(stopping, images).macs
    assert spent.tolist() == exit_macs(model)[taken_exits(confidence, thresholds)].tolist()


@pytest.mark.paper("dyn_perceiver")
def test_a_budget_is_kept(model, data):
    val = data.splits["val"]
    costs, confidence = exit_macs(model), exit_confidence(model, val)
    for budget in (costs[0], costs.mean(), 2 * costs[-1]):
        thresholds = EarlyExit.for_budget(model, val, budget).thresholds
        spent = costs[taken_exits(confidence, np.array(thresholds))].mean()
        assert spent <= budget
        assert spent >= 0.9 * min(budget, costs[-1])
    assert not model.training


def test_mistakes(model, data):
    with pytest.raises(FoveateError, match="budget"):
        EarlyExit.for_budget(model, data.splits["val"], 10.0)
    with pytest.raises(FoveateError, match="4 exits"):
        EarlyExit(model, [0.5])
    plain = VisionModel(create_model("resnet_mini32", num_classes=10), Preprocess(size=8), LABELS)
    with pytest.raises(FoveateError, match="no exits but its last"):
        EarlyExit(plain, [0.5])
