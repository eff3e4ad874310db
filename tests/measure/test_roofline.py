"""Places under the roof have closed forms; the ceilings are the machine's."""

import json

import pytest
import torch
from torch import nn

from foveate.measure import Ceilings, ceilings, waterline
from foveate.measure.roofline import layer_seconds

ROOF = Ceilings(flops=1e9, by="matrix product", bytes=1e8, threads=1, date="today")


@pytest.mark.paper("convfirst_efficiency")
def test_a_network_under_its_roof():
    """Latency = arithmetic / (peak x efficiency), and the waterline bounds what kernels can do."""
    net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.ReLU())
    found = waterline(net, torch.zeros(1, 8, 10, 10), ROOF, seconds=0.01)
    conv, relu = found.layers[-2:]
    flops, moved = 2 * 800 * 72, 4 * (800 + 576 + 800)
    assert (conv.flops, conv.bytes) == (flops, moved)
    assert conv.least == max(flops / 1e9, moved / 1e8)
    assert (conv.bound, relu.bound) == ("compute", "memory")
    assert relu.least == 4 * 1600 / 1e8
    assert relu.intensity == 800 / 6400
    assert found.ideal == pytest.approx((flops + 800) / 1e9)
    assert found.attainable == pytest.approx(conv.least + relu.least)
    assert found.seconds == pytest.approx(found.ideal / found.efficiency)
    assert found.gap == pytest.approx(1 / found.efficiency)
    assert found.most == pytest.approx(found.ideal / found.attainable)


def test_every_module_has_its_own_time():
    net = nn.Sequential(nn.Linear(64, 64), nn.Sequential(nn.ReLU(), nn.Linear(64, 64)))
    seconds = layer_seconds(net, torch.zeros(8, 64), seconds=0.01)
    assert set(seconds) == {"", "0", "1", "1.0", "1.1"}
    assert all(value >= 0 for value in seconds.values())


def test_a_sleeping_layer_is_charged_to_itself_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("foveate.measure.roofline.time.perf_counter", lambda: now[0])

    class Sleep(nn.Module):
        def forward(self, x):
            now[0] += 1.0
            return x

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Sleep()

        def forward(self, x):
            now[0] += 2.0
            return self.inner(x)

    assert layer_seconds(Both(), torch.zeros(1)) == {"": 2.0, "inner": 1.0}


def test_ceilings_are_measured_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("foveate.measure.roofline.SECONDS_PER_CEILING", 0.02)
    monkeypatch.setattr("foveate.measure.roofline.MATRIX_SIDE", 64)
    monkeypatch.setattr("foveate.measure.roofline.CONVOLUTIONS", ((4, 8, 3),))
    monkeypatch.setattr("foveate.measure.roofline.COPIED_BYTES", 1 << 16)
    first = ceilings()
    assert first.flops > 0
    assert first.bytes > 0
    assert first.balance == first.flops / first.bytes
    assert ceilings() == first
    (file,) = tmp_path.rglob("*.json")
    assert json.loads(file.read_text())["threads"] == torch.get_num_threads()
    file.write_text("{")
    assert ceilings().threads == first.threads
    assert ceilings(fresh=True).date >= first.date
