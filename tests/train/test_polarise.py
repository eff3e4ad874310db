"""Weights that take sides: the term by hand, the sphere, and what pruning costs then."""

import numpy as np
import pytest
import torch

from foveate.errors import FoveateError
from foveate.surgery.gradual_pruning import MaskSmallest
from foveate.train import Ingredient, train
from foveate.train.recoverable_pruning import Polarise, polarity


@pytest.mark.paper("recoverable_pruning")
def test_the_term_and_its_gradient_by_hand():
    weight = torch.tensor([[0.5, -2.0, 0.1], [1.0, -0.2, 4.0]], requires_grad=True)
    value = polarity(weight, 0.5)
    small, large = (0.5 + 0.1 + 0.2) / 3, (2 + 1 + 4) / 3
    assert value.item() == pytest.approx(small / large)
    value.backward()
    down, up = 1 / 3 / large, -small / large**2 / 3
    wanted = np.array([[down, -up, down], [up, -down, up]])
    np.testing.assert_allclose(weight.grad, wanted, rtol=1e-5)
    assert polarity(torch.ones(10), 0.3).item() == pytest.approx(1)
    assert polarity(torch.tensor([0.0, 0, 3]), 2 / 3).item() == 0


def polarised(model):
    """Of the layers that have a batch norm right behind them."""
    return [stage.conv2.weight for stage in model.backbone.stages]


class Watch(Ingredient):
    """Measures the filters after each step, and can pull the plug."""

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop

    def step_end(self, training) -> None:
        for weight in polarised(training.model):
            torch.testing.assert_close(weight.flatten(1).norm(dim=1), torch.ones(len(weight)))
        if training.clock.step == self.stop:
            raise InterruptedError


@pytest.mark.paper("recoverable_pruning")
def test_filters_stay_on_the_sphere_take_sides_and_resume(squares, make_model, recipe, tmp_path):
    settings, moved = recipe(epochs=4, learning_rate=0.05), []
    for strength in (0.0, 1.0):
        model = make_model()
        parts = [Polarise(0.6, strength), Watch()]
        folder = tmp_path / str(strength)
        train(model, squares, settings, folder, ingredients=parts, progress=False)
        pruned, _ = MaskSmallest(sparsity=0.6).apply(model)
        pairs = zip(polarised(model), polarised(pruned), strict=True)
        moved.append(sum((a - b).square().sum().item() for a, b in pairs))
    assert moved[1] < 0.6 * moved[0]

    again = make_model()
    for stop in (5, -1):
        try:
            parts = [Polarise(0.6, 1.0), Watch(stop)]
            train(again, squares, settings, tmp_path / "b", ingredients=parts, progress=False)
        except InterruptedError:
            again = make_model()
    whole, resumed = model.state_dict(), again.state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_mistakes(squares, make_model, recipe, tmp_path):
    for fields in ({"sparsity": 0}, {"strength": -1}):
        with pytest.raises(FoveateError, match=next(iter(fields))):
            Polarise(**fields)
    with pytest.raises(FoveateError, match="no layer of the model has a batch norm"):
        train(make_model(), squares, recipe(), tmp_path, ingredients=[Polarise(skip=("*",))])
