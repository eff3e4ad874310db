"""ReSTE in the one loop: the power rises as it should; networks learn, resume and are packed."""

import math

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.surgery.low_bits import Pack
from foveate.surgery.reste import Binarise, Sign, estimating_error, gradient_variance
from foveate.train import Ingredient, evaluate, train
from foveate.train.reste import RaisePower, indicators, power_at
from foveate.vision import Preprocess, VisionModel


def tiny():
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)]
    for _ in range(2):
        parts += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.ReLU(), nn.BatchNorm2d(16)]
    parts += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4)]
    model = VisionModel(nn.Sequential(*parts), Preprocess(size=8), ["nw", "ne", "sw", "se"])
    return Binarise().apply(model, torch.rand(2, 3, 8, 8))[0]


class Watch(Ingredient):
    """Remembers power and indicators of every step, and can pull the plug."""

    def __init__(self, stop=-1):
        self.stop, self.powers, self.found = stop, [], []

    def gradients(self, training):
        powers = {m.power for m in training.model.modules() if isinstance(m, Sign)}
        assert len(powers) == 1
        self.powers += powers
        self.found.append(indicators(training.model))

    def step_end(self, training):
        if training.clock.step == self.stop:
            raise InterruptedError


@pytest.mark.paper("reste")
def test_the_power_rises_as_a_quarter_of_a_cosine():
    assert power_at(0.0, 3.0) == 1
    assert power_at(1.0, 3.0) == pytest.approx(3)
    assert power_at(2 / 3, 3.0) == pytest.approx(1 + 2 * (1 - math.cos(math.pi / 3)))
    assert power_at(0.5, 1.0) == 1


@pytest.mark.paper("reste")
def test_it_learns_resumes_and_is_packed(squares, recipe, tmp_path):
    settings = recipe(epochs=6, optimizer="adamw", learning_rate=0.01)
    model, watch = tiny(), Watch()
    parts = [RaisePower(3.0), watch]
    train(model, squares, settings, tmp_path / "a", ingredients=parts, progress=False)
    steps = len(watch.powers)
    assert watch.powers == pytest.approx([power_at(step / steps, 3.0) for step in range(steps)])
    judged = evaluate(model, squares.splits["train"])
    assert judged.top1 > 0.6
    packed, coverage = Pack().apply(model)
    assert len(coverage) == 2
    assert evaluate(packed, squares.splits["train"]).top1 == judged.top1
    errors = [one.error for one in watch.found]
    assert errors[-1] < 0.8 * errors[0]

    for stop in (3, steps - 2, -1):
        again = tiny()
        parts = [RaisePower(3.0), Watch(stop)]
        try:
            train(again, squares, settings, tmp_path / "b", ingredients=parts, progress=False)
        except InterruptedError:
            continue
    whole, resumed = model.state_dict(), again.state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)


@pytest.mark.paper("reste")
def test_indicators_sum_over_binary_layers():
    model = tiny()
    model(torch.rand(4, 3, 8, 8)).square().sum().backward()
    layers = [model.backbone[2], model.backbone[5]]
    for m in model.modules():
        if isinstance(m, Sign):
            m.power = 2.0
    found = indicators(model)
    assert found.error == pytest.approx(sum(estimating_error(m.weight, 2.0) for m in layers))
    assert found.variance == pytest.approx(sum(gradient_variance(m.weight.grad) for m in layers))


def test_mistakes(squares, make_model, recipe, tmp_path):
    with pytest.raises(FoveateError, match=r"last is 0\.5"):
        RaisePower(0.5)
    with pytest.raises(FoveateError, match="apply Binarise"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[RaisePower()])
    with pytest.raises(FoveateError, match="no binary layer"):
        indicators(tiny())
