"""Removed channels: against the network that ignores them, and against zeros."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import foveate
from foveate import FoveateError
from foveate.measure import count
from foveate.surgery.channels.groups import Channels
from foveate.surgery.channels.masked import Masked
from foveate.surgery.channels.remove import Narrow, Remove, groups
from foveate.surgery.fold import Fold
from foveate.surgery.lineage import lineage
from foveate.surgery.merging import Merge
from foveate.surgery.mixturegrowth import Templates
from foveate.surgery.quant_whitepaper import Quantise
from foveate.surgery.replay import replay


def settled(model, seed=0):
    """Weights, norms and their statistics unlike those that they begin with."""
    chance = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.ndim == 0:
            continue
        noise = torch.randn(tensor.shape, generator=chance)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif tensor.ndim == 1:
            tensor.add_(0.3 * noise)
    return model.eval()


def images(side=16, channels=3):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(7))


def named(model, x, **how):
    return {group.name: group for group in groups(model, x, **how)}


def silenced(model, group, gone):
    """The same model, with zeros for all that layers take from some channels."""
    state = model.state_dict()
    for index in gone:
        for (name, axis), indices in group.channels[index].items():
            if axis == 1:
                state[name][:, indices] = 0
    return model


def demand_zeros_change_nothing(model, x, wanted):
    """The independent truth: a channel that nobody listens to can go."""
    for name in wanted:
        group = named(model, x)[name]
        gone = (0, len(group) - 1)[: len(group) - 1]
        edited, coverage = Remove(gone={name: gone}).apply(model, x)
        assert [line.name for line in coverage if line.changed] == [name]
        quiet = silenced(copy.deepcopy(model), group, gone)
        with torch.no_grad():
            torch.testing.assert_close(edited(x), quiet(x), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- wirings


class Wired(nn.Module):
    """Everything at once: residuals, concatenation, parts, groups, shuffles, maps in a row."""

    def __init__(self):
        super().__init__()
        self.dim, self.parts = 12, (4, 8)
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.same = nn.Conv2d(12, 12, 1, bias=False)
        self.one, self.two = nn.Conv2d(12, 6, 1), nn.Conv2d(12, 12, 1)
        self.light = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.deep = nn.Conv2d(12, 24, 1)
        self.grouped = nn.Conv2d(24, 24, 3, padding=1, groups=4)
        self.split_one, self.split_two = nn.Conv2d(4, 6, 1), nn.Conv2d(8, 6, 1)
        self.gate = nn.Conv2d(12, 12, 1)
        self.up = nn.Conv2d(36, 16, 1)
        self.last = nn.PReLU(4)
        self.hidden, self.head = nn.Linear(4 * 256, 10), nn.Linear(10, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = x + self.same(F.gelu(self.same(x)))
        x = x + self.two(self.light(F.relu6(self.one(x))))
        a, b = torch.split(x, self.parts, 1)
        mixed = torch.cat([self.split_one(a), self.split_two(b)], 1)
        left, right = self.gate(mixed).chunk(2, 1)
        mixed = torch.cat([left.sigmoid() * right, mixed], 1)
        x = torch.cat([mixed[:, : self.dim], self.grouped(F.relu(self.deep(x)))], 1)
        x = F.max_pool2d(F.pixel_shuffle(self.up(x), 2), 2)
        x = self.last(x).flatten(1)
        return self.head(F.relu(self.hidden(x)))


@pytest.fixture
def wired():
    torch.manual_seed(0)
    return settled(Wired())


def test_each_group_of_a_network_with_everything(wired):
    x = images()
    found = named(wired, x)
    coverage = []
    for name, group in found.items():
        edited, coverage = Remove(gone={name: (1,)}).apply(wired, x)
        by_name = {line.name: line for line in coverage}
        assert by_name[name].changed, by_name[name].why
        assert count(edited, x).params == count(wired, x).params - group.params
    assert {"stem", "one", "deep", "up", "hidden"} <= set(found)
    assert found["one"].channels[1]["light.weight", 0].tolist() == [2, 3]
    assert len(found["up"]) == 4, "pixel_shuffle makes one channel of four"
    assert len(found["deep"]) == 4, "each group of the grouped convolution goes as a whole"
    left = {line.name: line.why for line in coverage if not line.changed}
    assert left["head"] == "left, as it is an output of the network"


def test_zeros_in_a_network_with_everything(wired):
    demand_zeros_change_nothing(wired, images(), ["hidden"])
    plain = settled(
        nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, groups=1)
        )
    )
    demand_zeros_change_nothing(plain, images(), ["0"])


def test_evenly_from_each_group(wired):
    """Where groups and heads stay, the same number goes from each."""
    edited, _ = Narrow(share=0.5, whole=False).apply(wired, images())
    assert edited.grouped.groups == 4
    assert edited.grouped.weight.shape == (12, 3, 3, 3)
    whole, _ = Narrow(share=0.5).apply(wired, images())
    assert whole.grouped.groups == 2
    assert whole.grouped.weight.shape == (12, 6, 3, 3)


class Attention(nn.Module):
    def __init__(self, dim=12, heads=3, dims=5):
        super().__init__()
        self.num_heads, self.head_dim, self.inner = heads, dims, heads * dims
        self.qkv, self.proj = nn.Linear(dim, 3 * self.inner), nn.Linear(self.inner, dim)
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))
        self.table = nn.Parameter(torch.randn(31, heads))
        self.register_buffer("index", torch.arange(16)[:, None] - torch.arange(16) + 15)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1) * 5**-0.5 + self.bias
        scores = scores + self.table[self.index].permute(2, 0, 1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, self.inner)
        return (x + self.proj(y)).mean(1)


def test_heads_go_whole_or_lose_the_same():
    torch.manual_seed(0)
    model, x = settled(Attention()), images(4, 12)
    assert {name: len(group) for name, group in named(model, x).items()} == {"bias": 3}
    edited, _ = Remove(gone={"bias": (1,)}).apply(model, x)
    assert (edited.num_heads, edited.head_dim, edited.inner) == (2, 5, 10)
    assert edited.table.shape == (31, 2)
    demand_zeros_change_nothing(model, x, ["bias"])
    slim, _ = Narrow(share=0.4, whole=False).apply(model, x)
    assert (slim.num_heads, slim.head_dim, slim.qkv.out_features) == (3, 3, 27)


def test_shared_weights_are_cut_once_and_stay_shared():
    torch.manual_seed(0)
    first, second = nn.Linear(6, 8), nn.Linear(6, 8)
    second.weight = first.weight
    both = nn.ModuleDict({"first": first, "second": second, "head": nn.Linear(8, 2)})

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = both

        def forward(self, x):
            return self.parts["head"](self.parts["first"](x) + self.parts["second"](x))

    x = torch.randn(2, 6)
    edited, _ = Narrow(share=0.25).apply(settled(Twice()), x)
    assert edited.parts["first"].weight is edited.parts["second"].weight
    assert edited.parts["first"].weight.shape == (6, 6)


def test_zeros_beside_channels_go_on_both_sides():
    """The shortcut of a CIFAR ResNet: every second pixel, and zeros on both sides."""

    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.pad = nn.Conv2d(3, 8, 3, padding=1), 4
            self.deep, self.head = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Linear(16, 3)

        def forward(self, x):
            x = F.relu(self.stem(x))
            around = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return self.head((around + self.deep(x)).mean((2, 3)))

    torch.manual_seed(0)
    model, x = settled(Shortcut()), images()
    found = named(model, x)
    assert {name: len(group) for name, group in found.items()} == {"stem": 8, "deep": 4}
    assert found["deep"].channels[1]["deep.weight", 0].tolist() == [1, 13]
    edited, _ = Narrow().apply(model, x)
    assert (edited.pad, edited.stem.out_channels, edited.deep.out_channels) == (2, 4, 8)
    demand_zeros_change_nothing(model, x, ["deep"])


# ---------------------------------------------------------------- what is refused


def test_what_is_left_and_why():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(4, 4, 1) for _ in range(3))
            self.d = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.b(self.a(x).sort(1).values)
            x = self.c(x.reshape(2, 4, 2, 2))
            return self.d(x)

    x = images(2, 4)
    _, coverage = Narrow().apply(Odd().eval(), x)
    told = {line.name: (line.changed, line.why) for line in coverage}
    assert told["a"] == (False, "left, as it goes into aten.sort.default, which is not understood")
    assert told["b"][0] is False
    assert "does not take what stays" in told["b"][1]
    assert told["c"][0]
    assert told["d"][1] == "left, as it is an output of the network"


def test_numbers_hidden_in_python_are_refused_not_broken():
    def scaled(factor):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

            def forward(self, x):
                x = self.a(x)
                return self.b(x * (x.shape[1] if factor else 4))

        return Net().eval()

    Narrow().apply(scaled(False), images())
    with pytest.raises(FoveateError, match="would compute something else"):
        Narrow().apply(scaled(True), images())


def test_mistakes(wired):
    x = images()
    with pytest.raises(FoveateError, match=r"no group of channels 'nose'.*stem"):
        Remove(gone={"nose": (1,)}).apply(wired, x)
    with pytest.raises(FoveateError, match="hidden has 10 channels: 10 is none"):
        Remove(gone={"hidden": (10,)}).apply(wired, x)
    with pytest.raises(FoveateError, match=r"nothing of .* would stay"):
        Remove(gone={"hidden": tuple(range(10))}).apply(wired, x)
    with pytest.raises(FoveateError, match="share is 1"):
        Narrow(share=1.0)
    with pytest.raises(FoveateError, match="by is 'luck'"):
        Narrow(by="luck")
    with pytest.raises(FoveateError, match="found nothing to change"):
        Narrow(only=("nose",)).apply(wired, x)
    with pytest.raises(FoveateError, match="needs images"):
        Narrow().apply(wired)


# ---------------------------------------------------------------- choosing, composing, loading


def test_the_least_channels_go(wired):
    with torch.no_grad():
        wired.hidden.weight[[2, 5]] *= 1e-3
        wired.head.weight[:, [2, 5]] *= 1e-3
    edited, _ = Narrow(share=0.2, only=("hidden",)).apply(wired, images())
    kept = [i for i in range(10) if i not in (2, 5)]
    assert torch.equal(edited.hidden.weight, wired.hidden.weight[kept])
    assert torch.equal(edited.head.weight, wired.head.weight[:, kept])
    rounded, _ = Narrow(share=0.2, only=("hidden",), multiple=4).apply(wired, images())
    assert rounded.hidden.out_features == 8
    chance = [
        Narrow(by="random", seed=s, skip=("up",)).apply(wired, images())[0] for s in (0, 0, 1)
    ]
    states = [model.state_dict()["hidden.bias"] for model in chance]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_channel_weighs_all_that_goes_with_it():
    first, norm, last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 5)
    model = settled(nn.Sequential(first, norm, nn.ReLU(), last))
    parts = first.weight.square().mean((1, 2, 3)), last.weight.square().mean((0, 2, 3))
    expected = torch.stack(parts).mean(0).detach().double().numpy()
    assert named(model, images())["0"].scores(model) == pytest.approx(expected, rel=1e-5)


def test_what_a_channel_costs():
    model = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)))
    x = images()
    group = named(model, x)["0"]
    edited, _ = Remove(gone={"0": (3,)}).apply(model, x)
    before, after = (count(m, x[:1]) for m in (model, edited))
    assert before.macs - after.macs == group.macs
    assert before.params - after.params == group.params


def test_an_edited_network_trains_in_its_own_mode(wired):
    wired.train()
    wired.stem.weight.requires_grad_(False)
    wired.norm.eval()
    edited, _ = Narrow().apply(wired, images())
    assert edited.training
    assert not edited.norm.training
    edited(images()).sum().backward()
    for name, parameter in edited.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == (name != "stem.weight")


@pytest.mark.parametrize(
    "chain",
    [
        [Narrow(share=0.3), Narrow(share=0.3, whole=False)],
        [Narrow(), Templates(), Fold(), Narrow()],
    ],
)
def test_removals_compose_and_load(chain, wired):
    x = images()
    model = wired
    for edit in chain:
        model, _ = edit.apply(model, x)
    again = replay(Wired(), json.loads(json.dumps(lineage(model))))
    again.load_state_dict(model.state_dict())
    assert torch.equal(model(x), again.eval()(x))


def test_orders(wired):
    x = images()
    narrow, _ = Narrow().apply(wired, x)
    quantised, _ = Quantise().apply(narrow, x)
    assert quantised(x).shape == (2, 5)
    with pytest.raises(FoveateError, match="holds weights as integers: channels are removed from"):
        Narrow().apply(quantised, x)
    merged, _ = Merge().apply(narrow, x)
    with pytest.raises(FoveateError, match="holds weights as constants"):
        Narrow().apply(merged, x)


# ---------------------------------------------------------------- timm's families

FAST = {"resnet10t": 32}
SLOW = {
    "mobilenetv3_small_050": 32,
    "inception_next_atto": 64,
    "resnet18": 64,
    "regnety_002": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "mobilenetv3_small_100": 64,
    "convnext_atto": 64,
    "fastvit_t8": 64,
    "levit_128s": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "pvt_v2_b0": 64,
    "mixer_s32_224": 224,
    "ese_vovnet19b_slim_dw": 64,
    "ghostnet_050": 64,
    "resnext50_32x4d": 64,
    "repvit_m0_9": 64,
    "shvit_s1": 64,
    "xcit_nano_12_p16_224": 64,
    "edgenext_xx_small": 64,
}
FAMILIES = [
    *(pytest.param(name, side, id=name) for name, side in FAST.items()),
    *(pytest.param(name, side, id=name, marks=pytest.mark.slow) for name, side in SLOW.items()),
]


@pytest.mark.parametrize(("name", "side"), FAMILIES)
def test_families(name, side, tmp_path):
    torch.manual_seed(0)
    model = settled(timm.create_model(name, num_classes=3))
    x = images(side)
    channels = Channels(model, x)
    nothing = Masked(channels, channels.stays({})).outputs(x)
    with torch.no_grad():
        torch.testing.assert_close(nothing[0], model(x))
    edited, coverage = Narrow(share=0.4).apply(model, x)
    assert all(line.changed or line.why.startswith("left") for line in coverage)
    assert count(edited, x).macs < 0.6 * count(model, x).macs
    foveate.save(edited, tmp_path / "model")
    np.save(tmp_path / "x.npy", x.numpy())
    with torch.no_grad():
        np.save(tmp_path / "y.npy", edited(x).numpy())
    code = (
        "import numpy, torch, foveate\n"
        "torch.set_num_threads(1); torch.set_grad_enabled(False)\n"
        "model = foveate.load_network('model')\n"
        "y = model(torch.from_numpy(numpy.load('x.npy'))).numpy()\n"
        "print(numpy.array_equal(y, numpy.load('y.npy')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "True\n", done.stderr


LISTENERS = [
    ("resnet10t", 32, ["layer1.0.conv1", "conv1.0"]),
    ("densenet121", 64, ["features.denseblock1.denselayer1.conv1"]),
    ("mobilenetv3_small_050", 32, ["blocks.1.0.conv_pw"]),
    ("deit_tiny_patch16_224", 224, ["blocks.0.mlp.fc1"]),
    ("levit_128s", 224, ["stages.0.blocks.0.attn"]),
    ("swin_tiny_patch4_window7_224", 224, ["layers.0.blocks.0.attn.qkv"]),
    ("regnety_002", 64, ["s1.b1.conv1.conv"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side", "wanted"), LISTENERS)
def test_zeros_in_families(name, side, wanted):
    torch.manual_seed(0)
    model = settled(timm.create_model(name, num_classes=3))
    demand_zeros_change_nothing(model, images(side), wanted)
