"""Attention by hand, silent channels that go unheard, and targets that are kept."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from foveate import FoveateError
from foveate.measure import count
from foveate.surgery.activation_structured_pruning import (
    RemoveInattentive,
    attention,
    prune_to_target,
    rewound,
)
from foveate.surgery.lineage import lineage
from foveate.surgery.masks import Mask, masked


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    ).eval()
    nn.init.uniform_(model[1].bias, 0.5, 1.5)
    nn.init.uniform_(model[3].bias, 0.5, 1.5)
    return model


def images(seed=1):
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.paper("activation_structured_pruning")
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_attention_by_hand(power):
    model, batches = net(), [images(1), images(2)[:3]]
    found = attention(model, batches, power)
    x = torch.cat(batches)
    for name, end in (("0", 3), ("3", 5), ("7", 8)):
        y = model[:end](x).detach().double().abs().pow(power)
        means = y.mean((0, 2, 3)) if y.ndim == 4 else y.mean(0)
        np.testing.assert_allclose(found[name], means.numpy(), rtol=1e-5)


def test_linear_layers_have_their_channels_last():
    """Of maps, too, as Swin's are."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 7)
    x = torch.randn(2, 4, 5, 3)
    found = attention(nn.Sequential(layer, nn.ReLU()), [x])["0"]
    np.testing.assert_allclose(
        found, layer(x).relu().double().mean((0, 1, 2)).detach().numpy(), rtol=1e-6
    )


@pytest.mark.paper("activation_structured_pruning")
def test_silent_channels_go_unheard():
    model = net()
    with torch.no_grad():
        model[1].bias[[1, 4]] = -100
    edited, _ = RemoveInattentive(threshold=1e-6).apply(model, images())
    assert edited[0].out_channels == edited[3].in_channels == 6
    torch.testing.assert_close(edited(images()), model(images()))
    half, _ = RemoveInattentive(share=0.5).apply(model, [images()])
    assert (half[0].out_channels, half[3].out_channels) == (4, 6)
    told = attention(model, [images()])["3"]
    kept = np.sort(np.argsort(told)[6:])
    assert torch.equal(half[7].weight, model[7].weight[:, kept])


@pytest.mark.paper("activation_structured_pruning")
def test_weights_are_rewound():
    early, trained = (Mask().apply(net(seed))[0] for seed in (0, 1))
    pruned, _ = RemoveInattentive(share=0.5).apply(trained, images())
    again = rewound(pruned, early)
    assert again[3].weight.shape == pruned[3].weight.shape
    assert lineage(again) == lineage(pruned)
    assert list(masked(again)) == ["0.weight", "3.weight", "7.weight"]
    ours = {tuple(row) for row in again[7].weight.T.tolist()}
    assert ours < {tuple(row) for row in early[7].weight.T.tolist()}


def params(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.paper("activation_structured_pruning")
@pytest.mark.parametrize("target", ["params", "macs"])
def test_a_share_that_must_stay(target):
    model, trained = net(), []
    best, rounds = prune_to_target(
        model, copy.deepcopy(model), [images()], lambda cut: trained.append(cut) or 0.5,
        target=target, least=0.6, step=0.4, rounds=5,
    )  # fmt: skip
    shares = [getattr(one, target) / getattr(count(model, images()[:1]), target) for one in rounds]
    assert all(one.kept == (share >= 0.6) for one, share in zip(rounds, shares, strict=True))
    assert any(one.kept for one in rounds)
    assert not all(one.kept for one in rounds)
    last = [one for one in rounds if one.kept][-1]
    assert getattr(count(best, images()[:1]), target) == getattr(last, target)
    assert trained[-1] is best


@pytest.mark.paper("activation_structured_pruning")
def test_an_accuracy_that_must_stay_and_what_is_rolled_back():
    model = net()
    whole = params(model)

    def train(cut):
        """As if accuracy fell with what is removed."""
        assert cut[7].weight.shape[1] == cut[3].out_channels
        return params(cut) / whole

    best, rounds = prune_to_target(
        model, model, [images()], train, target="accuracy", least=0.5, step=0.5, rounds=5
    )
    assert 0.5 <= params(best) / whole < 1
    refused = [one for one in rounds if not one.kept]
    assert refused
    assert all(one.accuracy < 0.5 or np.isnan(one.accuracy) for one in refused)
    assert len(lineage(best)) == sum(one.kept for one in rounds)
    with pytest.raises(FoveateError, match="no try of 2 kept"):
        prune_to_target(
            model, model, [images()], train, target="accuracy", least=1.0, step=0.5, rounds=2,
            edit=RemoveInattentive(threshold=1.0),
        )  # fmt: skip


def test_mistakes():
    for fields in ({"threshold": 0}, {"power": 0}, {"share": 1.0}):
        with pytest.raises(FoveateError, match=next(iter(fields))):
            RemoveInattentive(**fields)
    with pytest.raises(FoveateError, match="needs images"):
        RemoveInattentive().apply(net())
    for wrong in ({"target": "size", "least": 0.5}, {"target": "macs", "least": 2}):
        with pytest.raises(FoveateError, match=r"target is 'size'|least is 2"):
            prune_to_target(net(), net(), [images()], lambda cut: 1.0, **wrong)
