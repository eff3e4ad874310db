"""Which convolutions stand in a row, and which of them may become one."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from foveate.surgery.depth_compression_dp.rows import rows

pytestmark = pytest.mark.paper("depth_compression_dp")


def of(nets, name):
    return rows(nets.make(name), nets.images())


def told(row):
    return [(link.norm is not None, link.act is not None, link.source) for link in row.links]


def test_a_row_ends_at_a_pool(nets):
    first, second = of(nets, "vgg")
    assert told(first) == [(True, True, -1), (True, True, -1), (False, True, -1)]
    assert told(second) == [(False, True, -1)] * 2
    assert [link.takes[2:] for link in first.links] == [(17, 18), (17, 18), (9, 9)]


def test_residual_connections_lead_from_position_to_position(nets):
    [row] = of(nets, "resnet")
    assert [link.source for link in row.links] == [-1, -1, 1, -1, 3]
    legal = {(i, j) for i in range(5) for j in range(i + 1, 6) if row.may_merge(i, j)}
    crossing = {(0, 2), (2, 4), (2, 5), (0, 4), (1, 4)}
    assert legal == {(i, j) for i in range(5) for j in range(i + 1, 6)} - crossing
    assert row.folded(1, 3) == [3]
    assert row.folded(0, 5) == [3, 5]
    assert row.folded(2, 3) == []


def test_what_is_added_behind_an_activation_stays_if_that_does(nets):
    [row] = of(nets, "depthwise")
    assert [link.is_late for link in row.links] == [False, False, True, False, True]
    assert row.folded(1, 3) == []
    assert row.folded(1, 5) == [3]
    assert row.may_merge(1, 3)
    assert not row.may_merge(0, 3)


@pytest.mark.parametrize("name", ["vgg", "resnet", "mobilenet", "depthwise"])
def test_margins_and_sizes_are_those_of_the_layers(nets, name):
    for row in of(nets, name):
        for i in range(len(row)):
            for j in range(i + 1, len(row) + 1):
                merged, x = row.merged(i, j), torch.zeros(row.links[i].takes, dtype=torch.float64)
                expected = x
                for link in row.links[i:j]:
                    expected = link.layer(expected)
                assert merged(x).shape == expected.shape
                assert tuple(merged.padding) == row.margins(i, j)[0]


def test_what_others_see_closes_a_row():
    class Seen(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

        def forward(self, x):
            a = self.convs[0](x)
            b = self.convs[2](self.convs[1](a).relu())
            return a.mean((2, 3)), self.convs[3](b)

    [row] = rows(Seen(), torch.zeros(1, 3, 8, 8))
    assert [bool(link.closed) for link in row.links] == [True, False, False, False]
    assert not row.may_merge(0, 2)
    assert row.may_merge(1, 4)


def test_a_layer_that_is_called_twice_stands_in_no_row():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x):
            return self.c(self.b(self.a(self.a(x))))

    [row] = rows(Twice(), torch.zeros(1, 3, 8, 8))
    assert [link.conv for link in row.links] == ["b", "c"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "lengths", "sums"),
    [
        (torchvision.models.resnet18, [4] + 6 * [2], 5),
        (lambda: timm.create_model("resnet18"), [4] + 6 * [2], 5),
        (torchvision.models.mobilenet_v2, [52], 10),
        (lambda: timm.create_model("mobilenetv2_100"), [52], 10),
        (torchvision.models.vgg11_bn, [2, 2, 2], 0),
        (torchvision.models.squeezenet1_1, [], 0),
    ],
)
def test_networks_of_others(build, lengths, sums):
    found = rows(build(), torch.rand(1, 3, 64, 64))
    assert [len(row) for row in found] == lengths
    assert sum(link.add is not None for row in found for link in row.links) == sums
