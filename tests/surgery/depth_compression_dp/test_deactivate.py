"""Activations go where merging is worth it, and the choice is the best of the two tables."""

import copy

import pytest
import torch
from torch import nn

from foveate import FoveateError
from foveate.surgery.depth_compression_dp.deactivate import Deactivate
from foveate.surgery.lineage import lineage

pytestmark = pytest.mark.paper("depth_compression_dp")


def plan_of(model):
    return lineage(model)[-1]["plan"]


def test_every_activation_goes_that_must(nets):
    edit = Deactivate(share=0.4, latency=nets.per_layer)
    edited, coverage = edit.apply(nets.make("vgg"), nets.images())
    assert [len(piece["convs"]) for piece in plan_of(edited)["pieces"]] == [3, 2]
    kinds = [type(part).__name__ for part in edited[0]]
    assert kinds.count("Identity") == 3
    assert kinds[7] == "ReLU"  # behind a row, and before a pool
    assert [edited[0][i].padding for i in (0, 3, 6)] == [(4, 4), (0, 0), (0, 0)]
    assert plan_of(edited)["seconds"] == {"before": 5.0, "after": 2.0}
    assert [line.changed for line in coverage] == [True] * 5
    assert "3 that can become one 9x9 convolution" in coverage[0].why


def test_the_least_important_go(nets):
    """A score that knows which ReLU matters, and a budget that one must go for."""
    model = nets.make("vgg")
    weights = {"0.2": 3.0, "0.5": 1.0, "0.10": 2.0}

    def score(edited):
        gone = [name for name in weights if isinstance(edited.get_submodule(name), nn.Identity)]
        return 10.0 - sum(weights[name] for name in gone)

    edited, _ = Deactivate(share=0.8, latency=nets.per_layer, score=score).apply(
        model, nets.images()
    )
    assert plan_of(edited)["off"] == [{"owner": "0.5", "what": "", "nth": 0, "of": 1}]
    assert plan_of(edited)["importance"] == -1.0
    edited, _ = Deactivate(share=0.6, latency=nets.per_layer, score=score).apply(
        model, nets.images()
    )
    assert plan_of(edited)["importance"] == -3.0
    assert isinstance(edited[0][2], nn.ReLU)


def test_where_merging_costs_time_everything_stays(nets):
    """Large kernels that take longer than what they replace are not made, nor scored."""
    scored = []

    def score(model):
        scored.append(model)
        return 0.0

    def dear(layer, x):
        return float(layer[0].weight.numel())

    edit = Deactivate(share=0.9, latency=dear, score=score, skip=("0.0",))
    with pytest.raises(FoveateError, match="give a share of 1"):
        edit.apply(nets.make("vgg"), nets.images())
    assert not scored


def test_a_shared_relu_is_told_apart(nets):
    model = nets.make("resnet")
    edited, _ = Deactivate(share=0.7, latency=nets.per_layer).apply(model, nets.images())
    off = plan_of(edited)["off"]
    assert {call["what"] for call in off} <= {"relu", ""}
    assert any(call["what"] == "relu" for call in off)
    names = [set(m.state_dict()) for m in (model, edited)]
    assert names[0] == names[1]


def test_the_norms_are_renewed(nets):
    edited, _ = Deactivate(share=0.8, latency=nets.per_layer).apply(
        nets.make("vgg"), [nets.images(1), nets.images(2)]
    )
    norm = edited[0][1]
    seen = torch.cat([edited[0][0](nets.images(seed)) for seed in (1, 2)])
    torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    assert norm.momentum == 0.1
    assert not edited.training


def test_padding_at_the_beginning_changes_borders_alone():
    """A run without activations to lose is inside what it was."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 5, padding=2)]
    model, x = nn.Sequential(*layers).double().eval(), torch.randn(2, 3, 12, 12).double()
    edit = Deactivate(share=0.9, latency=lambda layer, x: 1.0, score=lambda model: 0.0)
    plan, _ = edit.decide(model, x)
    assert plan["off"] == []
    edited = edit.rebuild(copy.deepcopy(model), plan)
    assert [edited[i].padding for i in (0, 2)] == [(3, 3), (0, 0)]
    before, after = model(x), edited(x)
    torch.testing.assert_close(before[..., 2:-2, 2:-2], after[..., 2:-2, 2:-2])
    assert before.shape == after.shape
    assert not torch.allclose(before, after)


def test_dearer_kernels_are_left_for_cheaper(nets):
    edited, _ = Deactivate(share=0.85, latency=nets.per_weight).apply(
        nets.make("mobilenet"), nets.images()
    )
    plan = plan_of(edited)
    assert plan["seconds"]["after"] <= 0.85 * plan["seconds"]["before"]


@pytest.mark.parametrize("field", [{"share": 1.0}, {"longest": 1}, {"batch": 0}])
def test_fields_out_of_range(field):
    with pytest.raises(FoveateError, match=next(iter(field))):
        Deactivate(**field)


def test_a_network_without_rows(nets):
    with pytest.raises(FoveateError, match="nothing to change"):
        Deactivate().apply(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), nets.images().float())
