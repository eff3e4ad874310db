"""The skeleton differs between mixers in its mixers alone, and meets its budget."""

from functools import partial

import pytest
import torch
from torch import nn

from foveate.backbones.stm_evaluation import Skeleton, at_equal
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.inceptionnext import InceptionDepthwise


def depthwise(kernel, dim):
    return nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)


@pytest.mark.paper("stm_evaluation")
def test_only_the_mixer_is_exchanged():
    """Parameters beside the mixers' own are the same, by name and by shape."""
    nets = [Skeleton(mixer) for mixer in (partial(depthwise, 3), partial(depthwise, 7))]
    nets.append(Skeleton(lambda dim: nn.Identity()))
    frames = [
        {name: p.shape for name, p in net.named_parameters() if "token_mixer" not in name}
        for net in nets
    ]
    assert frames[0] == frames[1] == frames[2]
    mixers = sum(p.numel() for name, p in nets[0].named_parameters() if "token_mixer" in name)
    assert mixers == 2 * (32 + 64 + 128) * (9 + 1)
    assert not any("token_mixer" in name for name, _ in nets[2].named_parameters())


@pytest.mark.parametrize("what", ["macs", "params"])
@pytest.mark.parametrize("kernel", [3, 9])
def test_the_budget_is_met(what, kernel):
    budget = {"macs": 40_000_000, "params": 400_000}[what]
    net = at_equal(partial(depthwise, kernel), budget, what, multiple=4)
    found = getattr(count(net, torch.zeros(1, 3, 32, 32)), what)
    assert abs(found / budget - 1) < 0.1


def test_a_narrower_net_for_a_dearer_mixer():
    widths = [
        at_equal(mixer, 300_000, "params", multiple=4).feature_info[0]["num_chs"]
        for mixer in (partial(depthwise, 3), lambda dim: nn.Conv2d(dim, dim, 3, padding=1))
    ]
    assert widths[0] > widths[1]


def test_widths_that_a_mixer_refuses_are_passed_over():
    net = at_equal(InceptionDepthwise, 300_000, "params", multiple=4)
    assert net.feature_info[0]["num_chs"] >= 8


def test_a_budget_that_nothing_meets():
    with pytest.raises(FoveateError, match="another budget"):
        at_equal(partial(depthwise, 3), 10, "params")
    with pytest.raises(FoveateError, match="params or macs"):
        at_equal(partial(depthwise, 3), 10_000, "seconds")
