"""Times of what pieces become, and how far a model is from what it was."""

import pytest
import torch
from torch import nn

from foveate.surgery.depth_compression_dp.rows import rows
from foveate.surgery.depth_compression_dp.tables import (
    Agreement,
    eager,
    piece_times,
    renew_norms,
    worthwhile,
)

pytestmark = pytest.mark.paper("depth_compression_dp")


def test_agreement_is_a_divergence(nets):
    model = nets.make("depthwise")
    agreement = Agreement.to(model, [nets.images(1), nets.images(2)])
    assert agreement(model) == pytest.approx(0.0, abs=1e-12)
    given = torch.cat([model(nets.images(seed)) for seed in (1, 2)]).detach()
    with torch.no_grad():
        model[-1].weight.mul_(1.5)
    other = torch.cat([model(nets.images(seed)) for seed in (1, 2)]).detach()
    p, q = given.softmax(1), other.softmax(1)
    expected = -(p * (p / q).log()).sum(1).mean()
    assert agreement(model) == pytest.approx(float(expected), rel=1e-4)


def test_layers_of_one_size_are_timed_once(nets):
    timed = []

    def latency(layer, x):
        timed.append((str(layer[0]), tuple(x.shape)))
        return 1.0

    for row in rows(nets.make("mobilenet"), nets.images()):
        piece_times(row, 3, 2, latency)
    assert len(timed) == len(set(timed))
    assert all(shape[0] == 2 for _, shape in timed)


def test_runs_that_are_worth_their_activations(nets):
    """A run whose fastest cuts are at an activation is as fast if that stays."""
    row = rows(nets.make("vgg"), nets.images())[0]
    times = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 2): 1.5, (1, 3): 2.5, (0, 3): 2.6}
    assert worthwhile(row, times, 3) == {(0, 2): (0, 2)}
    times[0, 3] = 2.4
    assert worthwhile(row, times, 3) == {(0, 2): (0, 2), (0, 3): (0, 3)}
    assert worthwhile(row, times, 2) == {(0, 2): (0, 2)}


def test_norms_see_all_images_alike(nets):
    model = nets.make("mobilenet")
    batches = [nets.images(1), nets.images(2)]
    model[0][1].momentum = 0.3
    expected = torch.cat([model[0][0](batch) for batch in batches])
    renew_norms(model, batches)
    norm = model[0][1]
    torch.testing.assert_close(norm.running_mean, expected.mean((0, 2, 3)))
    assert norm.momentum == 0.3
    assert not any(module.training for module in model.modules())
    frozen = nn.BatchNorm2d(3, track_running_stats=False)
    renew_norms(frozen, [torch.randn(2, 3, 4, 4)])
    assert frozen.running_mean is None


def test_the_clock_of_pytorch():
    seconds = eager(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4))
    assert 0 < seconds < 10
