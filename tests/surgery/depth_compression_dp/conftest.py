"""Small networks whose convolutions stand in rows of every kind, and a clock that never errs."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """A block that calls one ReLU twice."""

    def __init__(self, dim: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(dim)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(x + self.bn2(self.conv2(y)))


class Inverted(nn.Module):
    """Expansion, depthwise, projection, and a residual connection where it fits."""

    def __init__(self, dim: int, out: int, stride: int = 1) -> None:
        super().__init__()
        hidden = 2 * dim
        self.inside = nn.Sequential(
            nn.Conv2d(dim, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )
        self.adds = stride == 1 and dim == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x) if self.adds else self.inside(x)


class Depthwise(nn.Module):
    """Two depthwise layers with an activation that is no module, and one before the sum."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(dim, dim, (1, 5), padding=(0, 2), groups=dim)
        self.second = nn.Conv2d(dim, dim, 3, padding=2, dilation=2, groups=dim)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.act(self.second(F.gelu(self.first(x)))), x)


NETWORKS = {
    "vgg": lambda: [
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 12, 2), nn.LeakyReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()),
    ],
    "resnet": lambda: [
        *(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), Residual(12), Residual(12, 1)),
    ],
    "mobilenet": lambda: [
        *(nn.Conv2d(3, 6, 3, 2, padding=1), nn.BatchNorm2d(6), nn.ReLU6()),
        *(Inverted(6, 6), Inverted(6, 12, 2), Inverted(12, 12), Inverted(12, 12)),
    ],
    "depthwise": lambda: [nn.Conv2d(3, 12, 1), Depthwise(12), Depthwise(12)],
}


@pytest.fixture(params=list(NETWORKS))
def network(request):
    """Each of them."""
    return settled(request.param)


@pytest.fixture
def nets():
    """Networks by name, images for them, and clocks."""
    return SimpleNamespace(make=settled, images=images, per_layer=per_layer, per_weight=per_weight)


def settled(name):
    """A classifier in float64, whose norms are not what they begin with."""
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)]
    model = nn.Sequential(nn.Sequential(*NETWORKS[name]()), *pool).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, std=0.2)
    return model


def images(seed=3):
    torch.manual_seed(seed)
    return torch.randn(4, 3, 17, 18, dtype=torch.float64)


def per_layer(layer, x):
    """A clock on which every layer takes as long: so merging is all that saves time."""
    return 1.0


def per_weight(layer, x):
    """A clock on which a layer takes a second, and more the more weights it has."""
    return 1.0 + layer[0].weight.numel() / 500
