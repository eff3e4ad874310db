"""Sprint against its closed forms."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from foveate.backbones import create_model
from foveate.backbones.sprint import begin_as_identity


@pytest.mark.parametrize("name", ["sprint_s", "sprint_m", "sprint_l", "sprint_xl"])
def test_parameter_count(name):
    model = create_model(name, num_classes=10)
    widths = [24, *(info["num_chs"] for info in model.feature_info)]
    convolutions = 9 * 3 * 24 + sum(9 * (i + o) * o for i, o in pairwise(widths))
    norms = 2 * 24 + sum(4 * o for o in widths[1:])
    assert sum(p.numel() for p in model.parameters()) == convolutions + norms + 10 * widths[-1]


def test_first_filters_pass_channels_on():
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    begin_as_identity(conv)
    images = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(conv(images)[:, :3], images)
    assert conv.weight[3:].abs().sum() > 0
