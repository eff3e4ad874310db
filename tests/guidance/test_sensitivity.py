"""What a part costs alone, against edits made by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.guidance.sensitivity import (
    NO_TIME,
    Probe,
    Sensitivity,
    Widths,
    attempted,
    of_integers,
    of_merging,
    of_storage,
    ranked,
)
from foveate.surgery.channels.remove import Remove
from foveate.surgery.quant_whitepaper_qualcomm.simulate import Simulate
from foveate.surgery.storage import Store


def always():
    return True


@pytest.fixture
def net(images):
    """Three convolutions, of which the second gives the third nothing by half of its channels."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()]
    layers += [nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(16, 5)).eval()
    with torch.no_grad():
        net[2].weight[8:] *= 1e-3
        net[2].bias[8:] = 0
        net[4].weight[:, 8:] *= 1e-3
        net[8].weight.mul_(400)
        net[8].bias.sub_(net(images).mean(0))  # so that images get different answers
    return net


@pytest.fixture
def images():
    return torch.rand(48, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def moved(before, after):
    """The divergence, spelled out."""
    p, q = before.double().softmax(1), after.double().softmax(1)
    return float((p * (p.log() - q.log())).sum(1).mean())


def test_channels_cost_what_zeroing_them_costs(net, images):
    widths = Widths(net, images, Probe(net, images, None), always)
    assert set(widths.groups) == {"0", "2", "4"}
    assert len(widths.rows) == 9
    row = next(r for r in widths.rows if (r.part, r.how) == ("4", "8 of 16 channels"))
    zeroed = copy.deepcopy(net)
    group = widths.groups["4"]
    gone = np.argsort(group.scores(net), kind="stable")[:8].tolist()
    with torch.no_grad():
        zeroed[8].weight[:, gone] = 0
        assert row.divergence == pytest.approx(moved(net(images), zeroed(images)), rel=1e-3)
        same = net(images).argmax(1) == zeroed(images).argmax(1)
    assert row.lost.points == pytest.approx(100 * (~same).double().mean().item())


def test_what_costs_nothing_goes_first(net, images):
    widths = Widths(net, images, Probe(net, images, None), always)
    macs = 8 * widths.groups["2"].macs
    assert widths.gone(macs, 1) == {"2": tuple(range(8, 16))}
    more = widths.gone(2 * macs, 1)
    assert len(more) > 1
    assert set(more["2"]) >= set(range(8, 16))
    saved = sum(len(gone) * widths.groups[name].macs for name, gone in more.items())
    assert saved >= 2 * macs
    by_eight = widths.gone(2 * macs, 8)
    assert all(len(gone) == 8 for gone in by_eight.values())
    everything = widths.gone(math.inf, 1)
    assert {name: len(gone) for name, gone in everything.items()} == {"0": 12, "2": 12, "4": 12}
    smaller, _ = Remove(gone=everything).apply(net, images)
    assert smaller[2].weight.shape == (4, 4, 3, 3)


def test_each_layer_is_rounded_alone(net, images):
    simulate = Simulate(every_output=False)
    rows = of_integers(net, simulate, [images], Probe(net, images, None), always)
    assert [row.part for row in rows] == ["0", "2", "4", "8"]
    simulated, _ = simulate.apply(net, images)
    for name, module in simulated.named_modules():
        if hasattr(module, "on") and not name.startswith("8."):
            module.on = False
    with torch.no_grad():
        wanted = moved(net(images), simulated(images))
    assert rows[3].divergence == pytest.approx(wanted, rel=1e-2)
    assert all(row.divergence > 0 for row in rows)


def test_each_layer_is_stored_alone(net, images):
    rows = of_storage(net, Probe(net, images, None), always)
    stored, _ = Store(skip=("0", "2", "4")).apply(net)
    with torch.no_grad():
        wanted = moved(net(images), stored(images))
    assert rows[3].divergence == pytest.approx(wanted, rel=1e-2)
    assert ranked(rows)[0] == max(rows, key=lambda row: row.divergence).part


def test_points_are_of_the_labels(net, images):
    with torch.no_grad():
        answers = net(images).argmax(1).numpy()
    targets = answers.copy()
    targets[:12] = (answers[:12] + 1) % 5
    silent = copy.deepcopy(net)
    with torch.no_grad():
        silent[8].weight.zero_()
        silent[8].bias.copy_(F.one_hot(torch.tensor(3), 5).float())
    row = Probe(net, images, targets).harm("", "", "", silent)
    wanted = 100 * ((answers == targets).mean() - (targets == 3).mean())
    assert row.lost.points == pytest.approx(wanted)
    assert row.lost.low < row.lost.points < row.lost.high


def test_time_runs_out(net, images):
    left = iter([True] * 4)
    probe = Probe(net, images, None)
    widths = Widths(net, images, probe, lambda: next(left, False))
    assert sum(row.why == NO_TIME for row in widths.rows) == 5
    assert set(widths.groups) == {"0", "2", "4"}  # each was measured at a half, which comes first
    rows = of_integers(net, Simulate(), [images], probe, lambda: False)
    assert {row.why for row in rows} == {NO_TIME}
    known = Sensitivity("Store", "4", "4 bits", lost=widths.rows[0].lost, divergence=0.1)
    assert ranked([*rows[:2], known]) == ["4", "0", "2"]


def test_what_cannot_be_made_says_why(net, images):
    rows, why = attempted(lambda: of_merging(net, Probe(net, images, None)))
    assert rows == []
    assert "Fold found nothing to change" in why
