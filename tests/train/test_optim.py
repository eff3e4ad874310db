"""Fused steps against torch's plain ones, in every layout that gradients and state come in."""

import pytest
import torch
from torch import nn

from foveate.train.checkpoint import pack_optimizer, unpack_optimizer
from foveate.train.optim import make_optimizer

LAYOUTS = [torch.contiguous_format, torch.channels_last]


class Net(nn.Module):
    """A convolution whose two layouts in memory differ, where a VisionModel has its backbone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 3))


def plain(net, settings):
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1]},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    shared = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, foreach=False, fused=False, **shared)
    moment = {"momentum": settings.momentum, "nesterov": settings.momentum > 0}
    return torch.optim.SGD(groups, foreach=False, fused=False, **moment, **shared)


def step(net, optimizer, index, layout):
    chance = torch.Generator().manual_seed(index)
    for p in net.parameters():
        gradient = torch.randn(p.shape, generator=chance)
        p.grad = gradient.contiguous(memory_format=layout) if p.ndim == 4 else gradient
    optimizer.step()


@pytest.mark.parametrize("gradients", LAYOUTS)
@pytest.mark.parametrize("weights", LAYOUTS)
@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("adamw", 0.9), ("sgd", 0.9), ("sgd", 0.0)], ids=str
)
def test_fused_steps_equal_plain_ones(recipe, optimizer, momentum, weights, gradients):
    settings = recipe(optimizer=optimizer, learning_rate=0.1, momentum=momentum)
    ours, theirs = (Net().to(memory_format=weights) for _ in range(2))
    fused, slow = make_optimizer(ours, settings), plain(theirs, settings)
    for index in range(4):
        step(ours, fused, index, gradients)
        step(theirs, slow, index, gradients)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_state_from_a_checkpoint_lies_as_the_weights_do(recipe, optimizer):
    settings = recipe(optimizer=optimizer, learning_rate=0.1)
    nets = [Net().to(memory_format=torch.channels_last) for _ in range(2)]
    alone, first = (make_optimizer(net, settings) for net in nets)
    for index in range(2):
        step(nets[0], alone, index, torch.channels_last)
        step(nets[1], first, index, torch.channels_last)
    tensors, numbers = pack_optimizer(first)
    resumed = make_optimizer(nets[1], settings)
    unpack_optimizer(resumed, {k: v.contiguous() for k, v in tensors.items()}, numbers)
    step(nets[0], alone, 2, torch.channels_last)
    step(nets[1], resumed, 2, torch.channels_last)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(a, b)
