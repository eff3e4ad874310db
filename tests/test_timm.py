"""Our families in timm's registry."""

import timm
import timm.optim
import torch

import foveate.timm  # noqa: F401 - importing it is what registers
from foveate.backbones import sizes


def test_every_size_is_registered_and_none_of_timms_is_replaced():
    for name in sizes():
        assert timm.is_model(f"foveate_{name}")
    assert timm.create_model("convnext_atto").__class__.__module__.startswith("timm.")
    assert timm.is_model("sprint_s")


def test_timms_ways_of_making_and_changing():
    model = timm.create_model("foveate_inception_next_mini32", num_classes=5, drop_path_rate=0.1)
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    groups = timm.optim.param_groups_layer_decay(model, layer_decay=0.5)
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_features_only():
    pyramid = timm.create_model("foveate_convnext_atto", features_only=True, out_indices=(1, 3))
    maps = pyramid(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps] == [(1, 80, 8, 8), (1, 320, 2, 2)]
    assert pyramid.feature_info.channels() == [80, 320]
