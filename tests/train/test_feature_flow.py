"""Feature flow: the terms as written, and what they do to a training."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.train import train
from foveate.train.ffr import FeatureFlow, flow, shortcut
from foveate.vision import Preprocess, VisionModel


@pytest.mark.paper("ffr")
def test_velocity_and_curvature_as_written():
    torch.manual_seed(0)
    path = [torch.randn(2, 3, 4, 4) for _ in range(5)]
    f = [one.double().numpy() for one in path]
    velocity = sum(np.abs(f[i + 1] - f[i]).mean() for i in range(4))
    curvature = sum(np.abs(f[i + 1] - 2 * f[i] + f[i - 1]).mean() for i in range(1, 4))
    assert [term.item() for term in flow(path)] == pytest.approx([velocity, curvature], rel=1e-5)
    straight = [torch.full((1, 2, 3, 3), 0.5 * i) for i in range(4)]
    assert [term.item() for term in flow(straight)] == pytest.approx([1.5, 0.0])


@pytest.mark.paper("ffr")
def test_features_meet_as_through_a_shortcut_without_weights():
    x = torch.randn(2, 4, 8, 8)
    deeper = torch.zeros(2, 8, 4, 4)
    assert torch.equal(shortcut(x, deeper), F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
    assert torch.equal(shortcut(x, x), x)
    assert torch.equal(shortcut(x, torch.zeros(2, 2, 8, 8)), x[:, 1:3])
    path = [x, torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)]
    matched = [F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), *path[1:]]
    assert [t.item() for t in flow(path)] == pytest.approx([t.item() for t in flow(matched)])


class Block(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)

    def forward(self, x):
        return x + F.relu(self.norm(self.conv(x)))


def tiny():
    torch.manual_seed(0)
    blocks = nn.Sequential(*(Block(8) for _ in range(4)))
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    return VisionModel(net, Preprocess(size=8), ["nw", "ne", "sw", "se"])


def length(model):
    """Of the path of noise, against the size of the features that it ends with."""
    x = model.backbone[0](torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    path = []
    for block in model.backbone[1]:
        x = block(x)
        path.append(x)
    velocity, curvature = flow(path)
    return ((velocity + curvature) / x.abs().mean()).item()


@pytest.mark.paper("ffr")
def test_it_straightens_the_path(squares, recipe, tmp_path):
    settings, found = recipe(epochs=4, learning_rate=0.05), []
    for strength in (0.0, 0.3):
        model = tiny()
        parts = [FeatureFlow(("backbone.1.?",), velocity=strength, curvature=strength)]
        folder = tmp_path / str(strength)
        train(model, squares, settings, folder, ingredients=parts, progress=False)
        found.append(length(model))
    plain = tiny()
    train(plain, squares, settings, tmp_path / "plain", progress=False)
    assert found[0] == length(plain)
    assert found[1] < 0.8 * found[0]


def test_mistakes(squares, recipe, tmp_path):
    with pytest.raises(FoveateError, match="velocity is -1"):
        FeatureFlow(("*",), velocity=-1)
    with pytest.raises(FoveateError, match="points match 0 parts"):
        train(tiny(), squares, recipe(), tmp_path, ingredients=[FeatureFlow(("nose",))])
