"""The loss on every exit: what is added, and that a training moves all of them."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from foveate.adaptive.early_exit import exit_logits
from foveate.backbones import create_model
from foveate.data import open as open_data
from foveate.errors import FoveateError
from foveate.train import Recipe, train
from foveate.train.dyn_perceiver import ExitLosses
from foveate.vision import Preprocess, VisionModel


def model(name="dyn_perceiver_resnet_mini32"):
    torch.manual_seed(0)
    labels = [str(i) for i in range(10)]
    return VisionModel(create_model(name, num_classes=10), Preprocess(size=8), labels)


@pytest.mark.paper("dyn_perceiver")
def test_the_losses_that_are_added():
    found = model().train()
    training = SimpleNamespace(model=found, recipe=Recipe(epochs=1, label_smoothing=0.1))
    ingredient = ExitLosses((0.5, 0.25, 1.0), distil=0.7, temperature=2.0)
    ingredient.start(training)
    ingredient.start(training)  # as after a resumption
    images, targets = torch.rand(6, 3, 8, 8), torch.arange(6)
    logits = found(images)
    added = ingredient.loss(training, logits, targets, torch.zeros(()))
    *early, last = exit_logits(found, images)  # batch norms see the same batch
    teacher = (last / 2).softmax(1)
    expected = torch.zeros(())
    for share, said in zip((0.5, 0.25, 1.0), early, strict=True):
        expected += share * F.cross_entropy(said, targets, label_smoothing=0.1)
        apart = teacher * (teacher.log() - (said / 2).log_softmax(1))
        expected += 0.7 * 2.0**2 * apart.sum(1).mean()
    torch.testing.assert_close(added, expected)
    added.backward()
    assert found.backbone.head.cnn[1].weight.grad.abs().sum() > 0
    assert found.backbone.head.fc.weight.grad is None  # the teacher is not taught


@pytest.mark.paper("dyn_perceiver")
def test_a_training_moves_every_exit(tmp_path):
    found = model()
    exits = [found.backbone.get_submodule(name) for name in found.backbone.exits]
    before = [[p.clone() for p in exit.parameters()] for exit in exits]
    recipe = Recipe(epochs=0.05, batch_size=32, evaluate_every=1e9)
    train(found, open_data("digits"), recipe, tmp_path, ingredients=[ExitLosses()], progress=False)
    for exit, old in zip(exits, before, strict=True):
        assert not all(torch.equal(p, q) for p, q in zip(exit.parameters(), old, strict=True))


def test_it_needs_as_many_exits():
    training = SimpleNamespace(model=model("resnet_mini32"))
    with pytest.raises(FoveateError, match="1 exits"):
        ExitLosses().start(training)
    with pytest.raises(FoveateError, match="give one for each"):
        ExitLosses((1.0,)).start(SimpleNamespace(model=model()))
