"""Single layers in OpenVINO: they compute what they should, and calls count for nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from foveate.deploy import layers
from foveate.deploy.layers import deployed_seconds

pytest.importorskip("openvino")


def test_what_a_call_takes_is_not_the_layers(monkeypatch):
    given, clock = [], iter([3.0, 1.0, 0.5])

    def timing(call, seconds):
        given.append(call())
        return SimpleNamespace(median=next(clock))

    monkeypatch.setattr(layers, "timing", timing)
    layers._call.cache_clear()
    layer, x = (
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()).eval(),
        torch.rand(2, 3, 5, 6),
    )
    assert deployed_seconds(layer, x) == 2.0
    np.testing.assert_allclose(given[0], layer(x).detach(), rtol=1e-4, atol=1e-5)
    assert given[1].shape == (1, 1)
    assert deployed_seconds(layer, x) == 1e-7  # a call took longer than it with its layer
    layers._call.cache_clear()
