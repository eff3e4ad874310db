"""A stopwatch that looks at no clock, and a network to look at."""

import torch
from torch import nn

from foveate.measure import Timing, count
from foveate.surgery.storage import StoredLayer


def counted(programs, faster=0.6):
    """Times that follow from the multiply-adds alone; stored grids take 0.6 of them."""
    return [_time(program.model, faster) for program in programs]


def _time(model, faster):
    size = model.preprocess.size
    seconds = count(model, torch.zeros(1, 3, size, size)).macs / 1e9
    if any(isinstance(module, StoredLayer) for module in model.modules()):
        seconds *= faster
    return Timing(seconds, 0.99 * seconds, 1.01 * seconds, 10)


def small_net():
    """Three convolutions with their norms."""
    layers = []
    for inputs, outputs, stride in ((3, 16, 2), (16, 16, 1), (16, 32, 2)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]
        layers += [nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
