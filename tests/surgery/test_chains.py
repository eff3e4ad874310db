"""Which norm and ReLU follow a layer, in models that say it in different ways."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from foveate.surgery.chains import chains, readers

INF = float("inf")


class Wired(nn.Module):
    """Layers a, b and a norm n, wired by a function of the module and its input."""

    def __init__(self, wire):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.n, self.act = nn.BatchNorm2d(3), nn.ReLU(inplace=True)
        self.wire = wire

    def forward(self, x):
        return self.wire(self, x)


def used_twice(m, x):
    y = m.a(x)
    return m.b(m.n(y)) + y


def changed_in_place(m, x):
    y = m.a(x)
    y[:, 0] = 0
    return m.b(m.n(y))


CASES = {
    "modules": (
        lambda m, x: m.b(m.act(m.n(m.a(x)))),
        {"a": ("n", INF, None), "b": (None, None, "a")},
    ),
    "functions": (
        lambda m, x: m.b(F.max_pool2d(F.relu6(m.n(m.a(x))), 2)),
        {"a": ("n", 6.0, None), "b": (None, None, "a")},
    ),
    "methods": (
        lambda m, x: m.b(m.a(x).relu_().flip(2)).relu(),
        {"a": (None, INF, None), "b": (None, INF, None)},
    ),
    "a second use": (used_twice, {"a": (None, None, None), "b": (None, None, None)}),
    "in place": (changed_in_place, {"a": (None, None, None), "b": (None, None, None)}),
    "twice the same layer": (
        lambda m, x: m.b(m.n(m.a(m.a(x)))),
        {"a": (None, None, None), "b": (None, None, None)},
    ),
    "another activation": (
        lambda m, x: m.b(F.silu(m.n(m.a(x)))),
        {"a": ("n", None, None), "b": (None, None, None)},
    ),
    "an output": (lambda m, x: (lambda y: (y, m.n(y)))(m.a(x)), {"a": (None, None, None)}),
    "split and moved": (
        lambda m, x: m.b(m.a(x)[:, :, 1:].permute(0, 1, 3, 2)),
        {"a": (None, None, None), "b": (None, None, "a")},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_wirings(case):
    wire, expected = case
    model = Wired(wire).train()
    found = chains(model, torch.randn(2, 3, 4, 4))
    assert {k: (v.norm, v.top, v.source) for k, v in found.items()} == expected
    assert model.training
    assert model.n.num_batches_tracked == 0


def test_norms_that_hold_their_activation():
    model = timm.create_model("mobilenetv2_035")
    found = chains(model, torch.randn(1, 3, 32, 32))
    assert len(found) == 53
    assert [c.norm is not None for c in found.values()] == [True] * 52 + [False]
    assert sum(c.top == 6.0 for c in found.values()) == 35
    assert found["conv_stem"].shape == (1, 16, 16, 16)


MAKERS = {
    "conv2d": lambda m, x: m.b(m.a(x).transpose(2, 3).contiguous()),
    "relu": lambda m, x: m.b(m.a(x).relu()),
    "flip": lambda m, x: m.b(F.gelu(m.a(x)).flip(2)),
    "add": lambda m, x: m.b(F.gelu(m.a(x)) + 1),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_what_made_an_input(maker):
    found = chains(Wired(MAKERS[maker]).eval(), torch.randn(1, 3, 4, 4))
    assert (found["a"].maker, found["b"].maker) == ("", maker)


def test_what_made_an_input_behind_dropout_and_moves():
    def wire(m, x):
        return m.b(F.dropout(F.gelu(m.a(x)), 0.5, m.training).permute(0, 1, 3, 2)[:, :, 1:])

    assert chains(Wired(wire), torch.randn(1, 3, 4, 4))["b"].maker == "gelu"


TAKERS = {
    "gelu": lambda m, x: F.gelu(m.a(x)),
    "silu": lambda m, x: F.silu(m.n(m.a(x))),
    "sigmoid": lambda m, x: m.b(x) * m.a(x).sigmoid(),
    "hardswish": lambda m, x: F.hardswish(m.a(x).relu()),
    "gelu add": lambda m, x: F.gelu(y := m.a(x)) + y,
    "cat conv2d": lambda m, x: torch.cat([y := m.a(x), m.b(y)], 1),
    "": lambda m, x: m.a(x).relu(),
}


@pytest.mark.parametrize("takers", TAKERS)
def test_what_takes_an_output(takers):
    found = chains(Wired(TAKERS[takers]).eval(), torch.randn(1, 3, 4, 4))
    assert found["a"].takers == set(takers.split(" "))


class FromOutside(torch.autograd.Function):
    """What no function that PyTorch lets one watch makes."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()


def set_in_place(m, x):
    places = torch.zeros(2, 3, 4, 4)
    places[:, :, :1] = x[:, :, :1]
    return m.a(places)


CONSTANT = {
    "positions": (lambda m, x: m.b(m.a(torch.arange(48.0).view(1, 3, 4, 4).sin()) + x), "a"),
    "behind a layer": (lambda m, x: m.b(m.a(m.n.weight.view(1, 3, 1, 1))) + x, "ab"),
    "images of zeros": (lambda m, x: m.a(torch.zeros_like(x)), ""),
    "in place": (set_in_place, ""),
    "once an image": (lambda m, x: m.a(x) + m.a(torch.ones(1, 3, 4, 4)), ""),
    "not watched": (lambda m, x: m.a(FromOutside.apply(x)), ""),
}


@pytest.mark.parametrize("case", CONSTANT)
def test_which_layers_no_image_reaches(case):
    wire, wanted = CONSTANT[case]
    found = chains(Wired(wire).eval(), torch.randn(2, 3, 4, 4))
    assert {name for name, chain in found.items() if chain.constant} == set(wanted)


READ = {
    "one": (lambda m, x: m.b(m.n(m.a(x)).roll(1, 2)), ["b"]),
    "two": (
        lambda m, x: m.a((y := m.n(x))[:, :, 1:]) + m.b(y.permute(0, 1, 3, 2))[:, :, 1:],
        ["a", "b"],
    ),
    "a residual": (lambda m, x: m.a(y := m.n(x)) + y, None),
    "an activation": (lambda m, x: m.a(m.n(x).relu()), None),
    "the output": (lambda m, x: (m.a(y := m.n(x)), y), None),
    "a layer called twice": (lambda m, x: m.a(m.n(m.a(x))), None),
    "a norm called twice": (lambda m, x: m.a(m.n(m.n(x))), None),
    "a layer's weight alone": (lambda m, x: F.conv2d(m.n(x), m.a.weight), None),
}


@pytest.mark.parametrize("case", READ)
def test_who_takes_what_a_norm_makes(case):
    wire, wanted = READ[case]
    net = Wired(wire).train()
    found = readers(net, torch.randn(2, 3, 4, 4), lambda m: isinstance(m, nn.BatchNorm2d))
    assert found == {"n": wanted}
    assert net.training
