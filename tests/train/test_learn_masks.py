"""Heads that choose filters, trained in the one loop: they learn what fires, settle, and resume."""

import pytest
import torch

from foveate.adaptive.ftwt import FireTogether, masked_convs
from foveate.errors import FoveateError
from foveate.train import Ingredient, train
from foveate.train.ftwt import LearnMasks


class Watch(Ingredient):
    """Remembers the heads' losses and weights in each step, and can pull the plug."""

    def __init__(self, stop: int = -1) -> None:
        self.stop, self.losses, self.weights = stop, [], []

    def loss(self, training, logits, targets, loss):
        losses = [layer.loss for layer in masked_convs(training.model)]
        self.losses.append(None if None in losses else torch.stack(losses).mean().item())
        return loss

    def step_end(self, training) -> None:
        heads = [layer.head.fc.weight for layer in masked_convs(training.model)]
        self.weights.append([weight.detach().clone() for weight in heads])
        if training.clock.step == self.stop:
            raise InterruptedError


@pytest.mark.paper("ftwt")
def test_heads_learn_settle_and_resume(squares, make_model, recipe, tmp_path):
    images = torch.zeros(1, 3, 8, 8)
    settings = recipe(epochs=4, optimizer="adamw", learning_rate=0.003)
    edited, coverage = FireTogether(ratio=0.7).apply(make_model(), images)
    assert [line.changed for line in coverage].count(True) == 5
    watch = Watch()
    parts = [watch, LearnMasks()]
    train(edited, squares, settings, tmp_path / "a", ingredients=parts, progress=False)
    learnt = [loss for loss in watch.losses if loss is not None]
    assert len(learnt) == pytest.approx(len(watch.losses) / 2, abs=1)
    assert learnt[-1] < 0.9 * learnt[0]
    cooled = watch.weights[len(learnt)]
    assert all(map(torch.equal, cooled, watch.weights[-1]))
    assert not any(map(torch.equal, watch.weights[0], cooled))
    assert all(layer.loss is None for layer in masked_convs(edited))

    for stop in (3, len(learnt) + 2, -1):
        again, _ = FireTogether(ratio=0.7).apply(make_model(), images)
        parts = [Watch(stop), LearnMasks()]
        try:
            train(again, squares, settings, tmp_path / "b", ingredients=parts, progress=False)
        except InterruptedError:
            continue
    whole, resumed = edited.state_dict(), again.state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_mistakes(squares, make_model, recipe, tmp_path):
    with pytest.raises(FoveateError, match="cooldown is 2"):
        LearnMasks(cooldown=2)
    with pytest.raises(FoveateError, match="apply FireTogether"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[LearnMasks()])
