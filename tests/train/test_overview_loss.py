"""The loss on OverLoCK's overview: what is added, and where its gradient goes."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.data import open as open_data
from foveate.errors import FoveateError
from foveate.train import Recipe, train
from foveate.train.overlock import OverviewLoss
from foveate.vision import Preprocess, VisionModel

LABELS = [str(i) for i in range(10)]


def model(name="overlock_mini32", **options):
    torch.manual_seed(0)
    return VisionModel(create_model(name, num_classes=10, **options), Preprocess(size=16), LABELS)


@pytest.mark.paper("overlock")
def test_the_loss_is_added_and_reaches_the_overview():
    found = model(auxiliary=True).train()
    training = SimpleNamespace(model=found, recipe=Recipe(epochs=1, label_smoothing=0.0))
    ingredient = OverviewLoss(0.4)
    ingredient.start(training)
    ingredient.start(training)  # as after a resumption
    logits, targets = found(torch.rand(4, 3, 16, 16)), torch.tensor([1, 2, 3, 4])
    assert len(found.backbone.stages[2].overview._forward_hooks) == 1
    found.zero_grad()
    added = ingredient.loss(training, logits.detach(), targets, torch.zeros(()))
    seen = found.backbone.stages[2].auxiliary(ingredient._seen)
    torch.testing.assert_close(added, 0.4 * F.cross_entropy(seen, targets))
    added.backward()
    reached = {n for n, p in found.backbone.named_parameters() if p.grad is not None}
    assert {"stem.0.weight", "stages.2.auxiliary.1.fc.weight"} <= reached
    assert not any(n.startswith(("stages.2.focus", "stages.3", "head")) for n in reached)


@pytest.mark.paper("overlock")
def test_a_training_with_it(tmp_path):
    data = open_data("digits")
    recipe = Recipe(epochs=0.05, batch_size=32, evaluate_every=1e9)
    found = model(auxiliary=True)
    before = found.backbone.stages[2].auxiliary[1].fc.weight.clone()
    train(found, data, recipe, tmp_path, ingredients=(OverviewLoss(),), progress=False)
    assert not torch.equal(found.backbone.stages[2].auxiliary[1].fc.weight, before)


@pytest.mark.parametrize("name", ["overlock_mini32", "sprint_s"])
def test_it_needs_an_overview_with_a_classifier(name):
    training = SimpleNamespace(model=model(name))
    with pytest.raises(FoveateError, match="auxiliary"):
        OverviewLoss().start(training)
