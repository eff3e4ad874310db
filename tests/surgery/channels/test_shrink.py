"""Budgets of multiply-adds that are met, by the channels that answers need least."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import foveate
from foveate import FoveateError
from foveate.backbones.resnet import ResNet
from foveate.measure import count
from foveate.surgery.channels.remove import groups
from foveate.surgery.channels.shrink import Shrink, needs
from foveate.surgery.gpusq_vit import MaskTwoOfFour
from foveate.surgery.lineage import lineage
from foveate.surgery.quant_whitepaper import Quantise


class Residual(nn.Module):
    """A stem, a block beside a shortcut, and a head; maps are averaged."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.between = nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.outer, self.after = nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.after(self.outer(F.relu(self.between(self.inner(x))))))
        return self.head(x.mean((2, 3)))


def net(seed=0):
    torch.manual_seed(seed)
    model = Residual().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, 0, 0.1)
    return model


def images(n=6, side=8):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(3))


def macs(model, x):
    return count(model, x[:1]).macs


def test_needs_are_half_of_the_squared_slopes():
    """Against differences of the likelihood of the drawn answers, channel by channel."""
    model, x = net().double(), images().double()
    found = needs(model, groups(model, x), [x[:4], x[4:]], seed=5)
    chance = torch.Generator().manual_seed(5)
    drawn = [
        torch.multinomial(model(part).float().log_softmax(1).exp(), 1, generator=chance)
        for part in (x[:4], x[4:])
    ]
    makers = {"stem": (model.norm, model.after), "inner": (model.between,)}

    def likelihood(norms, channel, factor):
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with torch.no_grad():
            for norm in norms:
                norm.weight[channel] *= factor
                norm.bias[channel] *= factor
            told = model(x).log_softmax(1).gather(1, torch.cat(drawn))[:, 0]
        model.load_state_dict(state)
        return told

    assert set(found) == set(makers)
    for name, norms in makers.items():
        for channel in range(len(found[name])):
            up, down = (likelihood(norms, channel, factor) for factor in (1 + 1e-5, 1 - 1e-5))
            expected = ((up - down) / 2e-5).square().mean() / 2
            assert found[name][channel] == pytest.approx(expected.item(), rel=1e-3, abs=1e-9)


class Rows(nn.Module):
    """Two layers beside a shortcut; each row of a map stands for itself, or stays in its image."""

    def __init__(self, apart):
        super().__init__()
        self.apart = apart
        self.stem, self.inner, self.outer = nn.Linear(3, 8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = x = self.stem(x.permute(0, 2, 3, 1))
        if self.apart:
            y = y.flatten(0, 1)
        y = self.outer(F.gelu(self.inner(y)))
        return self.head((x + y.view_as(x)).mean((1, 2)))


def test_rows_that_are_no_images_are_summed_over_their_image():
    apart, together = Rows(apart=True).eval(), Rows(apart=False).eval()
    together.load_state_dict(apart.state_dict())
    x = images(4)
    found = needs(apart, groups(apart, x), [x])
    expected = needs(together, groups(together, x), list(x.split(1)))
    assert set(found) == set(expected) == {"stem", "inner"}
    for name, own in expected.items():
        np.testing.assert_allclose(found[name], own, rtol=1e-4, atol=1e-9)
    edited, _ = Shrink(macs=0.6).apply(apart, x)
    assert macs(edited, x) <= 0.6 * macs(apart, x)


@pytest.mark.parametrize("share", [0.8, 0.5, 0.3])
def test_the_budget_is_met_and_used(share):
    model, x = ResNet(5, depths=(1, 1), dims=(16, 32), block="basic", stem="small").eval(), images()
    edited, coverage = Shrink(macs=share).apply(model, x)
    left = macs(edited, x) / macs(model, x)
    assert share - 0.05 < left <= share
    assert any(line.changed for line in coverage)
    assert edited(x).shape == model(x).shape


def test_what_nothing_needs_goes_first():
    model, x = net(), images()
    with torch.no_grad():
        for index in (0, 3, 7):
            model.between.weight[index] = 0
            model.between.bias[index] = -1
    all_macs = macs(model, x)
    inner = 2 * 8 * 9 * 64
    edited, _ = Shrink(macs=1 - 3 * inner / all_macs).apply(model, x)
    assert edited.inner.out_channels == 9
    assert edited.stem.out_channels == 8
    torch.testing.assert_close(edited(x), model(x))


def test_a_cheap_channel_stays_where_a_dear_one_of_equal_need_goes():
    model, x = net(), images()
    found = {group.name: group for group in groups(model, x)}
    scores = needs(model, list(found.values()), [x])
    rates = {name: scores[name] / found[name].macs for name in found}
    least = min(rates, key=lambda name: rates[name].min())
    _, coverage = Shrink(macs=0.999).apply(model, x)
    assert [line.name for line in coverage if line.changed] == [least]


def test_multiples_names_and_floors_are_kept():
    model, x = ResNet(5, depths=(1, 1), dims=(16, 32), block="basic", stem="small").eval(), images()
    edited, _ = Shrink(macs=0.5, multiple=4).apply(model, x)
    widths = [m.out_channels for m in edited.modules() if isinstance(m, nn.Conv2d)]
    assert all(width % 4 == 0 for width in widths)
    plain = net()
    edited, _ = Shrink(macs=0.6, only=("inner",), least=0.25).apply(plain, x)
    assert edited.stem.out_channels == 8
    assert 3 <= edited.inner.out_channels < 12


def test_it_is_saved_between_other_edits(tmp_path):
    x = images()
    before, _ = MaskTwoOfFour().apply(net())
    shrunk, _ = Shrink(macs=0.6).apply(before, x)
    for name, model in (("alone", shrunk), ("followed", Quantise().apply(shrunk, x)[0])):
        foveate.save(model, tmp_path / name)
        again = foveate.load_network(tmp_path / name, Residual)
        assert json.dumps(lineage(again)) == json.dumps(lineage(model))
        assert torch.equal(again(x), model(x))


def test_the_model_stays_as_it_is():
    model, x = net().train(), images()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Shrink().apply(model, x)
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"macs": 1.0}, "macs is 1.0"), ({"least": 0.0}, "least is 0"), ({"multiple": 0}, "multiple")],
)
def test_wrong_fields_are_named(fields, told):
    with pytest.raises(FoveateError, match=told):
        Shrink(**fields)


def test_what_cannot_be_reached_is_said():
    with pytest.raises(FoveateError, match=r"0.9\d stay when all goes that may"):
        Shrink(macs=0.1, only=("inner",), least=0.9).apply(net(), images())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    with pytest.raises(FoveateError, match="no logits"):
        Shrink().apply(model, images())


def test_needs_follow_the_seed():
    model, x = net(), images()
    found = groups(model, x)
    first, same, other = (needs(model, found, [x], seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)
