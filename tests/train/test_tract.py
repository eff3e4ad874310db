"""TrAct's step, against the least squares problem that it solves in closed form."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.data import open as open_data
from foveate.errors import FoveateError
from foveate.train import Recipe, train
from foveate.train.tract import TrAct, _first_layer, precondition, second_moment
from foveate.vision import Preprocess, VisionModel


@pytest.mark.paper("tract")
def test_the_step_that_activations_ask_for():
    """It minimises |X D^T - b g|^2 / b + λ |D|^2, where b g is each row's own gradient."""
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 3, bias=False).double(), torch.randn(40, 5).double()
    z = layer(x)
    loss = z.tanh().square().mean()
    (g,) = torch.autograd.grad(loss, z, retain_graph=True)
    loss.backward()
    b, damping = len(x), 0.1
    left = torch.cat((x / b**0.5, damping**0.5 * torch.eye(5).double()))
    right = torch.cat((b**0.5 * g, torch.zeros(5, 3).double()))
    expected = torch.linalg.lstsq(left, right).solution.T
    found = precondition(layer.weight.grad, second_moment(layer, x), damping)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.paper("tract")
@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_rows(stride):
    conv = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
    x = torch.randn(2, 3, 6, 5)
    rows = F.unfold(x, 3, padding=1, stride=stride).transpose(1, 2).reshape(-1, 27)
    moment = second_moment(conv, x)
    torch.testing.assert_close(moment, rows.T @ rows / len(rows))
    linear = nn.Linear(27, 4)
    linear.weight.data = conv.weight.data.flatten(1)
    torch.testing.assert_close(second_moment(linear, rows), moment)
    gradient = torch.randn_like(conv.weight)
    assert precondition(gradient, moment, 0.1).shape == conv.weight.shape


def model():
    torch.manual_seed(0)
    labels = [str(i) for i in range(10)]
    return VisionModel(create_model("sprint_s", num_classes=10), Preprocess(size=8), labels)


def trained(tmp_path, name, **fields):
    found = model()
    recipe = Recipe(optimizer="sgd", learning_rate=0.05, batch_size=256, warmup=0.0, **fields)
    train(
        found,
        open_data("digits"),
        recipe,
        tmp_path / name,
        ingredients=(TrAct(),) if name == "tract" else (),
        progress=False,
    )
    return found


def test_it_joins_the_loop_and_changes_what_the_first_layer_learns(tmp_path):
    plain, ours, again = (
        trained(tmp_path / str(i), name, epochs=2.0)
        for i, name in enumerate(("plain", "tract", "tract"))
    )
    first = f"{plain.backbone.default_cfg['first_conv']}.weight"
    weights = [dict(m.backbone.named_parameters()) for m in (plain, ours, again, model())]
    assert not torch.equal(weights[1][first], weights[0][first])
    assert not torch.equal(weights[1][first], weights[3][first])
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in weights[1])


def test_mistakes():
    with pytest.raises(FoveateError, match="damping"):
        TrAct(0)
    with pytest.raises(FoveateError, match="first layer"):
        _first_layer(nn.Sequential(nn.ReLU()), None)
    with pytest.raises(FoveateError, match="grouped"):
        _first_layer(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "0")
