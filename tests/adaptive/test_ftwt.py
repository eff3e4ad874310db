"""Gathered filters against masked dense ones, counted work against kept channels, targets
against loops."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from foveate.adaptive.ftwt import FireTogether, expected_macs, masked_convs, mass_mask
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.merge import merge

pytestmark = pytest.mark.paper("ftwt")


class Net(nn.Module):
    """Plain, strided, dilated and depthwise convolutions, a residual, a bias, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(True))
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.wide = nn.Conv2d(16, 24, 3, stride=2, padding=2, dilation=2)
        self.last = nn.Conv2d(24, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.max_pool2d(x + F.relu6(self.norm(self.deep(x))), 2)
        return self.head(F.silu(self.last(F.relu(self.wide(x)))).mean((2, 3)))


def edited(ratio=0.8, net=None, side=16):
    """A network whose heads choose differently for different images."""
    torch.manual_seed(0)
    net = net or Net()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.1 * torch.randn_like(tensor))
    model, coverage = FireTogether(ratio=ratio).apply(net.eval(), images(side=side))
    for layer in masked_convs(model):
        weight = nn.init.normal_(layer.head.fc.weight, std=0.3)
        weight.data -= weight.data.mean(1, keepdim=True)
    return model, coverage


def images(n=6, seed=1, channels=3, side=16):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randn(n, channels, 1, 1, generator=generator)
    return colours + torch.randn(n, channels, side, side, generator=generator)


def as_masked(model, x):
    """The outputs of the slow form of every layer."""
    slow = copy.deepcopy(model)
    for layer in masked_convs(slow):
        layer.forward = layer.masked
    return slow(x)


# ---------------------------------------------------------------- what the heads should say


def slow_mask(responses, ratio):
    """Take filters, the largest first, until they have the ratio."""
    total, order = sum(responses), sorted(range(len(responses)), key=lambda i: -responses[i])
    kept, mass = set(), 0.0
    for i in order:
        if mass >= (ratio - 1e-5) * total:
            break
        kept.add(i)
        mass += responses[i]
    return [i in kept for i in range(len(responses))]


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.85, 1.0])
def test_targets_against_a_loop(ratio):
    torch.manual_seed(0)
    responses = torch.randn(40, 17).clamp(min=0).double()
    found = mass_mask(responses, ratio)
    assert found.tolist() == [slow_mask(row.tolist(), ratio) for row in responses]
    share = (responses * found).sum(1) / responses.sum(1)
    assert (share >= ratio - 1e-5).all()
    smallest = torch.where(found, responses, torch.inf).amin(1)
    assert (share - smallest / responses.sum(1) < ratio).all()
    if ratio == 1.0:
        assert torch.equal(found, responses > 1e-5 * responses.sum(1, keepdim=True))


# ---------------------------------------------------------------- what is computed


@pytest.mark.parametrize("n", [1, 6])
@torch.no_grad()
def test_gathered_is_masked(n):
    model, coverage = edited()
    assert all(line.changed for line in coverage)
    assert len(coverage) == 4
    x = images(n, seed=2)
    fast = model(x)
    assert (
        len({tuple(row) for layer in masked_convs(model) for row in layer.mask.tolist()})
        >= 3 * n**0.5
    )
    assert torch.allclose(fast, as_masked(model, x), atol=1e-5, rtol=1e-5)
    assert torch.allclose(merge(copy.deepcopy(model))(x), fast, atol=1e-5, rtol=1e-5)
    alone = torch.cat([model(image[None]) for image in x])
    assert torch.allclose(fast, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv2_035"])
@torch.no_grad()
def test_gathered_is_masked_in_timms_networks(name):
    model, coverage = edited(net=timm.create_model(name, num_classes=7), side=64)
    assert all(line.changed for line in coverage)
    model, x = model.double(), images(2, side=64).double()
    torch.testing.assert_close(model(x), as_masked(model, x))


@torch.no_grad()
def test_nothing_chosen_and_nothing_alive():
    model, _ = edited()
    layer = masked_convs(model)[2]
    layer.head.fc.bias.fill_(-100)
    assert not model.wide(torch.randn(2, 16, 8, 8)).any()
    layer.head.fc.bias.fill_(100)
    x = torch.zeros(2, 16, 8, 8)
    assert torch.allclose(layer.gathered(x), layer.masked(x))


@torch.no_grad()
def test_counted_work_is_the_closed_form():
    model, x = edited()[0], images(1, seed=3)
    inputs = {}
    for layer in masked_convs(model):
        layer.register_forward_pre_hook(lambda layer, args: inputs.update({layer: args[0]}))
    found = count(model, x)
    assert not found.uncounted
    expected = 12 * 5
    sides = {model.stem[0]: 16, model.deep: 16, model.wide: 4, model.last: 4}
    for layer, side in sides.items():
        kept = int((layer.head(inputs[layer]) > 0).sum())
        inputs_kept = sum(bool(channel.any()) for channel in inputs[layer][0])
        taps = layer.conv.kernel_size[0] ** 2
        expected += kept * side**2 * taps * (1 if layer is model.deep else inputs_kept)
        expected += layer.conv.in_channels * layer.conv.out_channels
        assert 0 < kept < layer.conv.out_channels
    assert found.macs == expected
    assert found.macs == 12 * 5 + sum(layer.macs() for layer in masked_convs(model)).item()
    assert found.macs < 0.7 * count(Net(), x).macs


@torch.no_grad()
def test_images_of_one_choice_go_together(monkeypatch):
    layer = masked_convs(edited()[0])[2]
    x = images(3, channels=16, side=8)[[0, 1, 0, 2, 1, 0]]
    sizes = []
    chosen = layer._chosen
    monkeypatch.setattr(layer, "_chosen", lambda x, *args: sizes.append(len(x)) or chosen(x, *args))
    assert torch.allclose(layer.gathered(x), layer.masked(x), atol=1e-6)
    assert sorted(sizes) == [1, 2, 3]


@torch.no_grad()
def test_the_guess_before_training():
    """If the heads say what they should, the work is what was foretold, and with 1 nothing is
    lost."""
    model, x = edited(ratio=0.5)[0], images(4)
    expected, dense = expected_macs(model.train(), x)
    assert model.training
    heads = sum(m.conv.in_channels * m.conv.out_channels for m in masked_convs(model))
    positions = {"stem": 256, "deep": 256, "wide": 16, "last": 16}
    weights = {name: getattr(Net(), name) for name in positions}
    weights["stem"] = weights["stem"][0]
    assert dense[0] == sum(weights[n].weight.numel() * p for n, p in positions.items())
    assert (expected - heads < 0.7 * dense).all()
    whole, _ = edited(ratio=1.0)
    for layer in masked_convs(whole):
        layer.by_target = True
    plain = Net().eval()
    whole_state = [v for k, v in whole.state_dict().items() if ".head." not in k]
    plain.load_state_dict(dict(zip(plain.state_dict(), whole_state, strict=True)))
    assert torch.allclose(whole(x), plain(x), atol=1e-5)


# ---------------------------------------------------------------- how it learns


def test_training_masks_and_keeps_the_losses_apart():
    model, x = edited()[0].double().train(), images().double()
    layer = masked_convs(model)[0]
    plain = copy.deepcopy(nn.Sequential(layer.conv, layer.norm, nn.ReLU()))
    y = layer(x)
    chosen = layer.head(x) > 0
    slow = plain(x)
    torch.testing.assert_close(y, slow * chosen[:, :, None, None])
    torch.testing.assert_close(layer.norm.running_var, plain[1].running_var)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (slow * chosen[:, :, None, None] * weight).sum().backward()
    torch.testing.assert_close(layer.conv.weight.grad, plain[0].weight.grad)
    assert all(p.grad is None for p in layer.head.parameters())

    target = mass_mask(slow.detach().abs().amax((2, 3)), 0.8).double()
    p = layer.head(x).sigmoid()
    loss = -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()
    assert layer.loss.item() == pytest.approx(loss.item(), rel=1e-6)
    layer.zero_grad(set_to_none=True)
    layer.loss.backward()
    assert layer.conv.weight.grad is None
    assert layer.head.fc.weight.grad.any()


def test_what_is_left_and_mistakes():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.groups = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 6, 1, groups=3)
            self.mirror = nn.Conv2d(6, 6, 3, padding=1, padding_mode="reflect")
            self.gate, self.last, self.unused = (nn.Conv2d(6, 6, 1) for _ in range(3))

        def forward(self, x):
            x = self.mirror(self.groups(self.twice(self.twice(x))))
            return self.last(x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid())

    _, coverage = FireTogether().apply(Odd(), images())
    assert [(line.name, line.changed, line.why) for line in coverage] == [
        ("twice", False, "left because the model calls it 2 times, not once"),
        ("groups", False, "left because it has groups"),
        ("mirror", False, "left because it does not pad with zeros"),
        ("gate", False, "left because its output is no map"),
        ("last", True, "computes the filters that its head chooses"),
        ("unused", False, "left because the model calls it 0 times, not once"),
    ]
    with pytest.raises(FoveateError, match="ratio is 0"):
        FireTogether(ratio=0)
    with pytest.raises(FoveateError, match="needs images"):
        FireTogether().apply(Net())
    with pytest.raises(FoveateError, match="nothing to change"):
        FireTogether().apply(nn.Linear(3, 3), torch.randn(2, 3))
