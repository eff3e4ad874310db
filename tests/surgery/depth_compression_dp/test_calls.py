"""Single calls are found again in a module's graph, and changed there alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate import FoveateError
from foveate.surgery.depth_compression_dp.calls import (
    Call,
    Watch,
    change,
    is_traceable,
    only,
    pad,
    skip,
)


class Sum(nn.Module):
    def forward(self, a, b):
        return a + b


class Calls(nn.Module):
    """The same things called as modules, functions and methods."""

    def __init__(self):
        super().__init__()
        self.shared, self.own, self.sum = nn.ReLU(), nn.Sigmoid(), Sum()
        self.point = nn.Conv2d(2, 2, 1)

    def forward(self, x):
        y = self.shared(self.point(x))
        y = self.shared(y - 1)
        z = F.gelu(x.relu() + y)
        z += torch.relu_(x - 0.5)
        return self.own(self.sum(z, x))


def calls(name, model=None):
    torch.manual_seed(0)
    events = Watch(model or Calls()).events(torch.randn(2, 2, 4, 4))
    return [event.call for event in events if event.name == name]


def test_calls_have_an_owner_and_a_number():
    assert calls("relu") == [
        Call("", "shared", 0, 2),
        Call("", "shared", 1, 2),
        Call("", "relu", 0, 2),
        Call("", "relu", 1, 2),
    ]
    assert calls("sigmoid") == [Call("own", "")]
    assert calls("gelu") == [Call("", "gelu", 0, 1)]
    assert calls("add") == [Call("", "add", 0, 2), Call("", "add", 1, 2), Call("", "sum", 0, 1)]
    wrapped = calls("relu", nn.Sequential(Calls()))
    assert [call.owner for call in wrapped if call] == ["0"] * 4


def test_what_is_called_within_what_is_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.ReLU(), nn.Sigmoid())

        def forward(self, x):
            return self.part(self.part(x))

    assert calls("relu", Twice()) == [None, None]


def test_one_call_is_changed_and_the_others_stay():
    torch.manual_seed(0)
    model, x = Calls(), torch.randn(2, 2, 4, 4)
    p = model.point(x)
    shared, method = calls("relu")[0], calls("relu")[2]
    late = calls("add")[2]
    changes = [(shared, skip), (method, skip), (late, only(0)), (Call("own", ""), skip)]
    edited = change(copy.deepcopy(model), [(c, done) for c, done in changes if c])
    expected = F.gelu(x + (p - 1).relu()) + (x - 0.5).relu()
    torch.testing.assert_close(edited(x), expected)
    assert {*edited.state_dict()} == {*model.state_dict()}


def test_an_operand_is_made_larger_or_smaller():
    model, x = nn.Sequential(Sums()), torch.randn(1, 1, 4, 6)
    [call] = calls_of_sum(model)
    edited = change(copy.deepcopy(model), [(call, pad(1, [-1, -1, 1, 1]))])
    torch.testing.assert_close(edited(x), x.mT + F.pad(x, (-1, -1, 1, 1)))
    merged = change(edited, [(call, only(0))])
    torch.testing.assert_close(merged(x), x.mT)
    assert "pad" not in merged[0].code


class Sums(nn.Module):
    def forward(self, x):
        return x.mT + x


def calls_of_sum(model):
    found = []
    for event in Watch(model).events(torch.zeros(1, 1, 4, 4)):
        if event.name == "add":
            found.append(event.call)
    return found


def test_what_cannot_be_followed():
    class Asking(nn.Module):
        def forward(self, x):
            return x.relu() if x.sum() > 0 else x.sigmoid()

    [call] = calls("relu", model := nn.Sequential(Asking())) or calls("sigmoid", model)
    assert not is_traceable(model, call)
    assert is_traceable(Calls(), Call("", "shared", 1, 2))
    assert not is_traceable(Calls(), Call("", "shared", 1, 3))


def test_another_network_is_no_place_for_a_plan():
    with pytest.raises(FoveateError, match="calls shared 2 times and not 3"):
        change(Calls(), [(Call("", "shared", 0, 3), skip)])
