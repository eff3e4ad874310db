"""A network with what there is to meet, and images for it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    """Depthwise and plain convolutions, a residual, both kinds of ReLU, and a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(12)
        self.side = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.last = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.stem(x)))
        x = F.relu(self.norm2(self.deep(x)))
        x = F.relu(self.norm3(self.wide(x)))
        x = x + F.relu6(self.side(x))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(16, 3, 10, 10, generator=torch.Generator().manual_seed(1))
