"""Hard-swish stands in for GELU and SiLU where that is near, and costs no other operation."""

import json
from typing import Any

import pytest
import timm
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from foveate import FoveateError
from foveate.surgery.graphs import aten, capture, is_call
from foveate.surgery.hard_swish import RARE, HardSwish, fitted, take_hard_swish
from foveate.surgery.lean import lean
from foveate.surgery.lineage import lineage
from foveate.surgery.replay import replay

ARITHMETIC = (aten.mul.Tensor, aten.add.Tensor)


def count(graph, *targets) -> int:
    return sum(is_call(node, *targets) for node in graph.graph.nodes)


class Padded(nn.Module):
    """An activation between two convolutions, of which the second pads."""

    def __init__(self, act: Any = F.gelu, padding: int = 1) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 12, 3, bias=False), act
        self.second = nn.Conv2d(12, 12, 3, padding=padding, groups=12)

    def forward(self, x):
        return self.second(self.act(self.first(x)))


class Twice(nn.Module):
    """One activation that two layers take, one behind a norm of tokens, and one that may go."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        y = F.gelu(self.one(x))
        y = self.two(y) + self.three(y)
        return self.head(F.silu(self.two(F.gelu(self.norm(y)))))


def pictures(side: int, number: int = 8):
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(3))


def as_if_trained(net: nn.Module, images) -> nn.Module:
    """Blocks count, and norms know what they get."""
    for name, parameter in net.named_parameters():
        if "gamma" in name:  # of layer scales, which begin near zero
            nn.init.ones_(parameter)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(images)
    return net.eval()


@pytest.mark.parametrize(
    ("scale", "shift", "gain", "offset"), [(1.0, 0.0, 0.5, 0.2), (2.2, 0.8, 3.0, -1.0)]
)
def test_a_hard_swish_is_found_again(scale, shift, gain, offset):
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(0))
    fit = fitted(x, lambda x: gain * F.hardswish(scale * x + shift) + offset)
    assert fit.error < 1e-6
    assert fit.scale.tolist() == pytest.approx([scale] * 5)
    assert fit.shift.tolist() == pytest.approx([shift] * 5, abs=1e-6)


@pytest.mark.parametrize("act", [F.gelu, F.silu])
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (-1.0, 0.7), (0.3, 2.0)])
def test_no_search_of_others_comes_much_nearer(act, mean, deviation):
    seen = mean + deviation * torch.randn(400, 1, generator=torch.Generator().manual_seed(1))
    x = torch.cat([seen, RARE[:, None]])

    def loss(numbers):
        scale, shift, gain, offset = (float(number) for number in numbers)
        return float((gain * F.hardswish(scale * x + shift) + offset - act(x)).square().mean())

    starts = [(scale, shift, 1 / scale, 0.0) for scale in (1, 2, 3) for shift in (-0.5, 0, 0.5)]
    least = min(minimize(loss, start, method="Nelder-Mead").fun for start in starts)
    fit = fitted(seen, act)
    assert float((fit(x) - act(x)).square().mean()) < 1.02 * least
    away, spread = fit(seen) - act(seen), act(seen).var(correction=0)
    assert fit.error == pytest.approx(float((away.square().mean() / spread).sqrt()), rel=1e-3)


def test_what_no_image_showed_is_not_far_off():
    silent = torch.randn(400, 1, generator=torch.Generator().manual_seed(1)) * 0.3 - 2
    loud = torch.linspace(0, 5, 9)[:, None]
    assert (fitted(silent, F.gelu)(loud) - F.gelu(loud)).abs().max() < 0.25


@pytest.mark.parametrize(
    ("name", "side", "replaced"),
    [("convnext_atto", 64, 12), ("deit_tiny_patch16_224", 224, 12), ("fastvit_t8", 64, 16)],
)
def test_networks_of_timm_take_it_without_other_operations(name, side, replaced):
    torch.manual_seed(0)
    images = pictures(side, 4)
    net = as_if_trained(timm.create_model(name), images)
    graph, _ = lean(net, images)
    before = count(graph, *ARITHMETIC)
    coverage = take_hard_swish(graph, images)
    assert sum(line.changed for line in coverage) == replaced
    assert count(graph, aten.hardswish.default) == replaced
    assert count(graph, *ARITHMETIC) == before
    with torch.no_grad():
        expected, given = net(images), graph(images)
    alike = F.cosine_similarity(expected - expected.mean(0), given - expected.mean(0))
    assert alike.min() > 0.95
    assert alike.min() < 1 - 1e-6  # it is an approximation


@pytest.mark.parametrize("act", [F.gelu, F.silu])
def test_borders_stay_right_where_the_next_layer_pads(act):
    torch.manual_seed(1)
    net, images = Padded(act), pictures(9, 64)
    graph = capture(net, images)
    (line,) = take_hard_swish(graph, images)
    assert line.changed
    assert count(graph, *ARITHMETIC) == 0
    with torch.no_grad():
        expected, given = net(images), graph(images)
    inner = (given - expected)[..., 1:-1, 1:-1].square().mean()
    border = (given - expected)[..., 0, :].square().mean()
    assert border < 2 * inner < 0.02 * expected.var()


def test_a_layer_that_does_not_pad_takes_an_offset_in():
    images = pictures(9, 64)

    def error(padding):
        torch.manual_seed(1)
        graph = capture(net := Padded(padding=padding), images)
        (line,) = take_hard_swish(graph, images)
        assert line.changed
        assert count(graph, *ARITHMETIC) == 0
        with torch.no_grad():
            away = (graph(images) - net(images))[..., 1:-1, 1:-1].mean((0, 2, 3))
        return float(away.abs().mean())

    assert error(0) < 0.6 * error(1)


def test_what_is_not_between_two_layers_alone_stays():
    torch.manual_seed(2)
    x = torch.randn(16, 8)
    graph = capture(Twice(), x)
    coverage = {(line.kind, line.name): line for line in take_hard_swish(graph, x)}
    assert [line.changed for line in coverage.values()].count(True) == 1
    assert count(graph, aten.gelu.default) == 2
    assert count(graph, aten.hardswish.default) == 1


def test_what_would_be_too_far_off_stays_and_is_said():
    net, images = Padded(), pictures(9)
    with pytest.raises(FoveateError, match=r"found nothing to change.*it would be off by"):
        HardSwish(tolerance=0.0).apply(net, images)
    with pytest.raises(FoveateError, match="needs images"):
        HardSwish().apply(net)


def test_its_plan_makes_it_again():
    torch.manual_seed(3)
    net, images = Padded(), pictures(9)
    edited, (line,) = HardSwish().apply(net, images)
    assert "hard-swish, off by" in line.why
    (step,) = lineage(edited)
    assert step["edit"] == "HardSwish"
    again = replay(Padded(), json.loads(json.dumps([step])))
    again.load_state_dict(edited.state_dict())
    assert torch.equal(again(images), edited(images))
