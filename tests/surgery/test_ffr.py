"""Faint filters: what is as good as nothing goes, and nothing is missed."""

import numpy as np
import pytest
import torch
from torch import nn

from foveate import FoveateError
from foveate.surgery.channels.remove import groups
from foveate.surgery.ffr import RemoveFaint, filter_norms


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 36, 5),
    ).eval()
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    return model


def images():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.paper("ffr")
def test_norms_by_hand():
    model = net()
    found = {group.name: group for group in groups(model, images())}
    norms = model[0].weight.detach().flatten(1).norm(dim=1) * model[1].weight.detach().abs()
    np.testing.assert_allclose(filter_norms(model, found["0"]), norms.numpy(), rtol=1e-5)
    plain = model[3].weight.detach().flatten(1).norm(dim=1)
    np.testing.assert_allclose(filter_norms(model, found["3"]), plain.numpy(), rtol=1e-5)


@pytest.mark.paper("ffr")
def test_faint_filters_go_and_nobody_misses_them():
    model = net()
    with torch.no_grad():
        model[0].weight[[2, 5]] = 0
        model[3].weight[4] = 0
    edited, coverage = RemoveFaint(threshold=0.01).apply(model, images())
    assert edited[0].out_channels == edited[3].in_channels == 6
    assert edited[3].out_channels == 5
    assert edited[6].in_features == 5 * 36
    torch.testing.assert_close(edited(images()), model(images()))
    assert [line.name for line in coverage if line.changed] == ["0", "3"]
    only, _ = RemoveFaint(only=("3",)).apply(model, images())
    assert (only[0].out_channels, only[3].out_channels) == (8, 5)
    half, _ = RemoveFaint(share=0.5).apply(model, images())
    assert (half[0].out_channels, half[3].out_channels) == (4, 3)


def test_mistakes():
    with pytest.raises(FoveateError, match="threshold is 1"):
        RemoveFaint(threshold=1.0)
    with pytest.raises(FoveateError, match="found nothing to change"):
        RemoveFaint(threshold=1e-6).apply(net(), images())
