"""Statistics set anew are those of the images, and are taken where they serve better."""

import copy

import torch
from torch import nn

from foveate.guidance.norms import renorm, renormed


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4))
    with torch.no_grad():
        net[5].weight.mul_(20)
    renorm(net, [torch.rand(256, 3, 8, 8)])
    return net.eval()


def test_statistics_are_those_of_the_images():
    model, batches = net(), [torch.rand(16, 3, 8, 8), 2 * torch.rand(16, 3, 8, 8)]
    renorm(model, batches)
    with torch.no_grad():
        seen = [model[0](batch) for batch in batches]
    means = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in seen]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    torch.testing.assert_close(model[1].running_var, variances)
    assert model[1].momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_they_are_taken_where_answers_come_nearer():
    like, images = net(), torch.rand(64, 3, 8, 8)
    spoilt = copy.deepcopy(like)
    with torch.no_grad():
        spoilt[1].running_mean.add_(1.0)
    better = renormed(spoilt, like, [images])
    assert better is not spoilt
    with torch.no_grad():
        before, after = ((m(images) - like(images)).abs().mean() for m in (spoilt, better))
    assert after < 0.1 * before
    assert renormed(like, like, [images[:2]]) is like  # as it was, it answers as itself
