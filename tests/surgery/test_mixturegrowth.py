"""Mixtures against sums written out, grown networks against the networks that they grew from."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.conv_norm import ConvNorm
from foveate.ops.merge import merge
from foveate.surgery.mixturegrowth import Grow, MixedLayer, Templates

pytestmark = pytest.mark.paper("mixturegrowth")


class Net(nn.Module):
    """Residuals, a depthwise convolution, biases, norms of two kinds, a flattened map."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.deep, self.groups = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.GroupNorm(2, 8)
        self.wide, self.last = nn.Conv2d(8, 12, 3, stride=2, bias=False), nn.BatchNorm2d(12)
        self.hidden, self.head = nn.Linear(12 * 9, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.two(F.gelu(self.one(x)))
        x = x + self.groups(self.deep(x))
        x = F.relu(self.last(self.wide(x)))
        return self.head(F.relu(self.hidden(x.flatten(1))))


def net(seed=0, make=Net):
    torch.manual_seed(seed)
    model = make().double().eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model


def images(seed=9, side=8):
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(seed)).double()


def mixed(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, MixedLayer)}


def shaped(bank):
    return bank.templates.view(-1, *bank.shape)


def same(a, b):
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


# ---------------------------------------------------------------- templates


@pytest.mark.parametrize("sharing", [1, 2, 3])
def test_the_edited_model_computes_what_it_did(sharing):
    model = net()
    edited, coverage = Templates(layers_per_bank=sharing, templates=3).apply(model, None)
    assert all(line.changed for line in coverage)
    same(edited(images()), model(images()))
    one, two, deep = (mixed(edited)[name] for name in ("one", "two", "deep"))
    assert (one.banks[0] is two.banks[0]) == (sharing > 1)
    assert one.banks[0] is not deep.banks[0]
    together = min(sharing, 2)
    templates = shaped(one.banks[0])
    assert templates.shape == (3 * together, 8, 8, 3, 3)
    rows = torch.stack([layer.coefficients[0] for layer in (one, two)[:together]])
    same(rows @ rows.T, torch.eye(together).double())
    slow = sum(c * template for c, template in zip(one.coefficients[0], templates, strict=True))
    same(one.weight, slow)
    same(one.weight, model.one.weight)


def test_parameters_and_gradients():
    model = net()
    edited, _ = Templates(templates=4).apply(model)
    weights = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    others = sum(p.numel() for p in model.parameters()) - sum(weights)
    assert sum(p.numel() for p in edited.parameters()) == 4 * sum(weights) + 4 * 7 + others
    for network in (model, edited):
        network.train()(images()).square().sum().backward()
    layer = mixed(edited)["wide"]
    gradient, bank = model.wide.weight.grad, layer.banks[0]
    same(layer.coefficients[0].grad, torch.einsum("oihw,koihw->k", gradient, shaped(bank)))
    theirs = torch.einsum("k,oihw->koihw", layer.coefficients[0], gradient)
    same(bank.templates.grad, theirs.flatten(1))


def test_merged_models_are_plain():
    model = net()
    edited, _ = Templates(layers_per_bank=2).apply(model)
    for network in (edited, Grow().apply(edited, images())[0]):
        before = network(images())
        merged = merge(copy.deepcopy(network))
        same(merged(images()), before)
        assert type(merged.deep) is nn.Conv2d
        assert merged.deep.groups == len(merged.deep.weight)
    plain, state = merge(edited), model.state_dict()
    assert list(plain.state_dict()) == list(state)
    for name, value in plain.state_dict().items():
        same(value, state[name])
    folded = nn.Sequential(ConvNorm(3, 4, 3)).double().eval()
    again, _ = Templates().apply(folded)
    same(merge(again)(images()), folded(images()))


# ---------------------------------------------------------------- growth


def grown(first, second=None, **fields):
    return Grow(second=second, **fields).apply(first, images())[0]


@pytest.mark.parametrize("sharing", [1, 2])
def test_with_nothing_between_two_models_the_grown_one_is_their_sum(sharing):
    """As the authors lay them: the two on the diagonal, each with its own norms."""
    edit = Templates(layers_per_bank=sharing)
    first, second = (edit.apply(net(seed))[0] for seed in (0, 1))
    model = grown(first, second, coefficients="zero")
    same(model(images()), first(images()) + second(images()))
    again = grown(model, coefficients="zero")
    same(again(images()), model(images()))
    assert len(mixed(again)["one"].blocks) == 4


def test_with_nothing_new_the_grown_model_is_the_small_one():
    first, _ = Templates().apply(net())
    model = grown(first, coefficients="zero")
    same(model(images()), first(images()))
    old, new = mixed(first), mixed(model)
    x = images()
    same(model.stem(x)[:, :8], first.stem(x))
    assert {k: tuple(v.weight.shape) for k, v in new.items()} == {
        "stem": (16, 3, 3, 3),
        "one": (16, 16, 3, 3),
        "two": (16, 16, 3, 3),
        "deep": (16, 1, 3, 3),
        "wide": (24, 16, 3, 3),
        "hidden": (20, 216),
        "head": (5, 20),
    }
    for name, layer in new.items():
        outputs, inputs = old[name].weight.shape[:2]
        same(layer.weight[:outputs, :inputs], old[name].weight)


@pytest.mark.parametrize("how", ["orthogonal", "copy", "random", "zero"])
def test_blocks_are_mixtures_of_the_templates_that_the_authors_name(how):
    first, second = (Templates(templates=5).apply(net(seed))[0] for seed in (0, 1))
    model = grown(first, second, coefficients=how, scale=0.5)
    layer, a, d = (mixed(m)["one"] for m in (model, first, second))
    assert layer.blocks[0][0][1] == layer.blocks[0][1][1] == 0
    assert layer.blocks[1][0][1] == layer.blocks[1][1][1] == 1
    coefficients = [[layer.coefficients[k] for k, _ in row] for row in layer.blocks]
    banks = [shaped(a.banks[0]), shaped(d.banks[0])]
    rows = []
    for row, bank in zip(coefficients, banks, strict=True):
        rows.append(torch.cat([sum(c * t for c, t in zip(k, bank, strict=True)) for k in row], 1))
    same(layer.weight, torch.cat(rows))
    same(layer.weight[:8, :8], a.weight)
    same(layer.weight[8:, 8:], d.weight)
    (_, b), (c, _) = coefficients
    known = torch.stack((a.coefficients[0], d.coefficients[0]))
    if how == "orthogonal":
        new = torch.stack((b, c))
        same(new @ new.T, 0.25 * torch.eye(2).double())
        same(new @ known.T, torch.zeros(2, 2).double())
    elif how == "copy":
        same((b - known[0]).norm(), torch.tensor(0.5).double())
        same((c - known[1]).norm(), torch.tensor(0.5).double())
    else:
        assert b.min() >= 0
        assert b.max() <= (0.5 if how == "random" else 0)


def test_with_two_templates_a_third_direction_is_what_is_least_there():
    first, _ = Templates(templates=2).apply(net())
    layer = mixed(grown(first))["one"]
    vectors = [c.detach() for c in layer.coefficients]
    same(vectors[0] @ vectors[1], torch.tensor(0.0).double())
    for n in (2, 3):
        moment = sum(torch.outer(v, v) for v in vectors[:n])
        values, directions = torch.linalg.eigh(moment)
        if values[1] - values[0] > 1e-6:
            assert abs(vectors[n] @ directions[:, 0]) == pytest.approx(1.0)


def test_new_parameters_are_few():
    """Growing adds three vectors a layer, and what is widened of norms and biases."""
    first, _ = Templates().apply(net())
    model = grown(first)
    templates = [
        sum(p.numel() for b in v.banks for p in b.parameters()) for v in mixed(first).values()
    ]
    sizes = [sum(p.numel() for p in m.parameters()) for m in (first, model)]
    new = {"stem": 1, "deep": 1, "head": 1}
    vectors = sum(2 * new.get(name, 3) for name in mixed(first))
    widened = 2 * (8 + 12) + 2 * 8 + 8 * 3 + 10
    assert sizes[1] - sizes[0] == vectors + widened
    assert sum(templates) == sum(
        p.numel() for v in mixed(model).values() for b in v.banks for p in b.parameters()
    )


def test_timms_networks_grow_and_train():
    small = net(make=lambda: timm.create_model("resnet10t", num_classes=7))
    x = images(side=32)[:2]
    first, _ = Templates(layers_per_bank=2).apply(small)
    model, coverage = Grow(coefficients="zero").apply(first, x)
    same(model(x), small(x))
    assert all(line.changed for line in coverage)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_it_is_the_same_every_time():
    first, _ = Templates(seed=3).apply(net())
    again, _ = Templates(seed=3).apply(net())
    models = [grown(m, coefficients="random", seed=5) for m in (first, again)]
    states = [m.state_dict() for m in models]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_mistakes():
    with pytest.raises(FoveateError, match="templates is 0"):
        Templates(templates=0)
    with pytest.raises(FoveateError, match="coefficients is 'new'"):
        Grow(coefficients="new")
    with pytest.raises(FoveateError, match="nothing to change"):
        Grow().apply(net(), images())
    with pytest.raises(FoveateError, match="needs images"):
        Grow().apply(Templates().apply(net())[0])
    left, _ = Templates(skip=("one",)).apply(net())
    with pytest.raises(FoveateError, match="cannot widen one, a Conv2d"):
        Grow().apply(left, images())
    with pytest.raises(FoveateError, match="second model has no"):
        Grow(second=left).apply(Templates().apply(net())[0], images())

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.b(self.a(x).view(len(x), 4, 8, 8))

    fixed, _ = Templates().apply(Fixed())
    with pytest.raises(FoveateError, match="does not run"):
        Grow().apply(fixed, images().float())
