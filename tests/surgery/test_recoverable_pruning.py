"""Means in the place of what goes: filter by filter by hand, and nearer than zeros."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from foveate import FoveateError
from foveate.surgery.gradual_pruning import MaskSmallest
from foveate.surgery.lineage import lineage
from foveate.surgery.masks import Mask
from foveate.surgery.recoverable_pruning import FillWithMean, filled
from foveate.surgery.replay import replay


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()


@pytest.mark.paper("recoverable_pruning")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_filter_by_filter(share):
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)) + 0.3
    found = filled(weight, share).numpy()
    rows = weight.numpy().reshape(6, -1)
    limit = np.sort(np.abs(rows).ravel())[round(share * rows.size)]
    for row, given in zip(rows, found.reshape(6, -1), strict=True):
        small = np.abs(row) < limit
        wanted = np.where(small, row[small].mean() if small.any() else 0, row)
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.paper("recoverable_pruning")
def test_means_are_nearer_than_zeros_and_load():
    model = net()
    filled_, coverage = FillWithMean(sparsity=0.7, skip=("3",)).apply(model)
    zeros, _ = MaskSmallest(sparsity=0.7, skip=("3",)).apply(model)
    errors = [(edited[0].weight - model[0].weight).norm() for edited in (filled_, zeros)]
    assert errors[0] < errors[1]
    large = zeros[0].weight != 0
    assert torch.equal(filled_[0].weight[large], model[0].weight[large])
    assert torch.equal(filled_[3].weight, model[3].weight)
    assert [line.changed for line in coverage] == [True, False]
    again = replay(net(), json.loads(json.dumps(lineage(filled_))))
    again.load_state_dict(filled_.state_dict())
    assert torch.equal(again[0].weight, filled_[0].weight)


def test_mistakes():
    with pytest.raises(FoveateError, match="sparsity is 1"):
        FillWithMean(sparsity=1.0)
    with pytest.raises(FoveateError, match=r"0.weight has a mask"):
        FillWithMean().apply(Mask().apply(net())[0])
