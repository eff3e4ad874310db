"""Poincaré ResNet, against a plain chain of exponentials and logarithms, and the authors' outputs.

The published fixture puts its points on the ball's rim, where single precision has no digits left:
the plain chain's own outputs move by percents there when the input does in its last digit. So each
tap is held to what rounding does to it, and all formulas are held to the plain chain in double.
"""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.backbones.poincare_resnet import PoincareResNet
from foveate.ops.poincare_resnet import PoincareConv2d

RIM = {torch.float32: 4e-3, torch.float64: 1e-5}


class Chain:
    """The network in one small step after another, points along the last axis."""

    def __init__(self, model: nn.Module, c: Tensor, as_released: bool) -> None:
        self.model, self.c, self.as_released = model, c, as_released

    def add(self, x, y):
        c, xy = self.c, (x * y).sum(-1, keepdim=True)
        xx, yy = x.square().sum(-1, keepdim=True), y.square().sum(-1, keepdim=True)
        top = (1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y
        return top / (1 + 2 * c * xy + c * c * xx * yy).clamp_min(1e-15)

    def project(self, x):
        most = (1 - RIM[x.dtype]) / self.c.sqrt()
        length = x.norm(dim=-1, keepdim=True)
        return torch.where(length > most, x / length * most, x)

    def exp0(self, v):
        length = self.c.sqrt() * v.norm(dim=-1, keepdim=True).clamp_min(1e-15)
        return self.project(length.tanh() * v / length)

    def atanh(self, length):
        """Finite, where the authors' is infinite from 1 on."""
        return length.clamp_max(1 - torch.finfo(length.dtype).eps).atanh()

    def log0(self, x):
        length = self.c.sqrt() * x.norm(dim=-1, keepdim=True).clamp_min(1e-15)
        return self.atanh(length) * x / length

    def factor(self, x):
        return 2 / (1 - self.c * x.square().sum(-1, keepdim=True)).clamp_min(1e-15)

    def exp(self, x, v):
        length = self.c.sqrt() * v.norm(dim=-1, keepdim=True).clamp_min(1e-15)
        return self.project(self.add(x, (self.factor(x) * length / 2).tanh() * v / length))

    def log(self, x, y):
        z = self.add(-x, y)
        length = self.c.sqrt() * z.norm(dim=-1, keepdim=True).clamp_min(1e-15)
        return 2 / self.factor(x) * self.atanh(length) * z / length

    def transport(self, x, y, v):
        turned = self.add(-self.add(y, -x), self.add(y, self.add(-x, v)))
        return turned * self.factor(x) / self.factor(y)

    def midpoint(self, x):
        weight = self.factor(x)
        m = (weight * x).sum(0, keepdim=True) / (weight - 1).sum()
        return m / (1 + (1 - self.c * m.square().sum()).clamp_min(1e-15).sqrt())

    def linear(self, x, layer):
        root = self.c.sqrt()
        factor = self.factor(x)
        if self.as_released:
            factor = 4 / factor
        norm = layer.weight.norm(dim=0)
        shift = 2 * root * layer.bias
        inner = root * factor * (x @ layer.weight) / norm * shift.cosh()
        v = 2 * norm / root * (inner - (factor - 1) * shift.sinh()).asinh()
        w = (root * v).sinh() / root
        return self.project(w / (1 + (1 + self.c * w.square().sum(-1, keepdim=True)).sqrt()))

    def conv(self, v, layer):
        if isinstance(layer, nn.Identity):
            return v
        size = [(side - 1) // layer.stride + 1 for side in v.shape[2:]]
        pad = layer.kernel // 2
        patches = F.unfold(v * layer.ratio, layer.kernel, padding=pad, stride=layer.stride)
        y = self.log0(self.linear(self.exp0(patches.mT), layer))
        return y.mT.unflatten(2, size)

    def norm(self, v, layer):
        x, target = self.exp0(v.permute(0, 2, 3, 1).flatten(0, 2)), self.exp0(layer.mean[None])
        m = self.midpoint(x)
        apart = 2 / self.c.sqrt() * self.atanh(self.c.sqrt() * self.add(-x, m).norm(dim=-1))
        scale = (layer.variance / (apart.square().mean() + 1e-6)).sqrt()
        y = self.exp(target, scale * self.transport(m, target, self.log(m, x)))
        return self.log0(y).view(len(v), *v.shape[2:], -1).permute(0, 3, 1, 2)

    def within(self, module):
        self.c = module.curvature.to(next(self.model.parameters()).dtype)
        return self

    def block(self, x, block):
        y = x
        for conv, norm in ((block.conv1, block.norm1), (block.conv2, block.norm2)):
            y = y.relu() if conv is block.conv2 else y
            y = self.within(conv).conv(y, conv)
            y = self.within(norm).norm(y, norm)
        if isinstance(block.downsample, PoincareConv2d):
            x = self.within(block.downsample).conv(x, block.downsample)
        self.within(block)
        x, y = (t if self.as_released else t.permute(0, 2, 3, 1) for t in (x, y))
        y = self.log0(self.add(self.exp0(y), self.exp0(x)))
        return (y if self.as_released else y.permute(0, 3, 1, 2)).relu()

    def __call__(self, x):
        """Outputs of the first layer and norm, the blocks, and the network."""
        first, norm, _ = self.model.stem
        taps = {"conv": self.within(first).conv(x, first)}
        taps["bn"] = x = self.within(norm).norm(taps["conv"], norm)
        x = x.relu()
        for i, stage in enumerate(self.model.stages):
            for j, block in enumerate(stage.blocks):
                taps[f"group{i + 1}.{j}"] = x = self.block(x, block)
        last = self.model.head.fc
        self.within(last)
        return taps, self.log0(self.linear(self.exp0(x.mean((2, 3))), last))


def drawn(as_released: bool) -> nn.Module:
    """A network in which every weight counts."""
    torch.manual_seed(0)
    small = {"depths": (1, 2, 1), "dims": (4, 6, 8)}
    model = PoincareResNet(5, as_released=as_released, **small).double()
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.paper("poincare_resnet")
@pytest.mark.parametrize("as_released", [False, True])
def test_the_plain_chain(as_released):
    """Outputs and gradients of a whole network in training, in double precision."""
    model = drawn(as_released)
    images = 0.5 * torch.randn(2, 3, 9, 8, dtype=torch.float64)
    _, expected = Chain(model, torch.tensor(0.1), as_released)(images)
    found = model(images)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    weight = torch.randn_like(found)
    parameters = list(model.parameters())
    ours = torch.autograd.grad((weight * found).sum(), parameters)
    theirs = torch.autograd.grad((weight * expected).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-8, rtol=1e-7)


@pytest.mark.paper("poincare_resnet")
@torch.inference_mode()
def test_the_authors_outputs(oracle):
    official = oracle("poincare_resnet__hyperbolic-8-16-32-20")
    model = official.load(create_model("poincare_resnet20", num_classes=10, as_released=True))
    curvatures = {b.data_ptr() for n, b in model.state_dict().items() if n.endswith("curvature")}
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters + len(curvatures) == official.facts["params"]

    chain = Chain(model, torch.tensor(0.1), as_released=True)
    runs = [chain(official.images * (1 + k * 1e-7)) for k in range(-4, 5)]
    ours = {"conv": seen(model, "stem.0", official), "bn": seen(model, "stem.1", official)}
    for i, stage in enumerate(model.stages):
        for j in range(len(stage.blocks)):
            ours[f"group{i + 1}.{j}"] = seen(model, f"stages.{i}.blocks.{j}", official)
    for name, y in ours.items():
        fact = official.facts["taps"][name]
        size = max(fact["std"], abs(fact["mean"]))
        rounding = np.ptp([taps[name].mean() for taps, _ in runs]) / size
        assert abs(y.mean().item() - fact["mean"]) / size <= max(1e-4, 3 * rounding), name
    fact = official.facts["taps"]["conv"]
    assert ours["conv"].std().item() == pytest.approx(fact["std"], rel=1e-6)
    assert ours["conv"].flatten()[:8].numpy() == pytest.approx(np.array(fact["first"]), abs=1e-6)
    expected = np.array(official.facts["outputs"][0]["values"])
    rounding = np.ptp([y.flatten().numpy() for _, y in runs], axis=0).max()
    error = abs(model(official.images).flatten().numpy() - expected).max()
    assert error <= max(1e-4 * abs(expected).max(), 3 * rounding)


def seen(model: nn.Module, name: str, official) -> Tensor:
    """What a module gives."""
    kept = []
    with model.get_submodule(name).register_forward_hook(lambda m, i, y: kept.append(y)):
        model(official.images)
    return kept[0]


def test_statistics_are_learnt_for_use():
    """A net in use answers for an image alone as for the image in a batch."""
    torch.manual_seed(0)
    model = create_model("poincare_mini32", num_classes=3)
    images = torch.randn(6, 3, 16, 16)
    for _ in range(3):
        model(images)
    model.eval()
    torch.testing.assert_close(model(images)[:1], model(images[:1]), atol=1e-5, rtol=1e-4)
    assert model.stages[0].blocks[0].norm1.running_mean.abs().max() > 0


def test_the_sizes():
    """As many layers as the name says, and a weight for each pair that they join."""
    for depth in (20, 32):
        model = create_model(f"poincare_resnet{depth}", num_classes=10)
        layers = [m for m in model.modules() if isinstance(m, PoincareConv2d)]
        threes = [layer for layer in layers if layer.kernel == 3]
        assert len(threes) + 1 == depth
        expected = 32 * 10 + 10 + sum(m.weight.numel() + m.out_features for m in layers)
        expected += sum(m.out_features + 1 for m in threes)
        assert sum(p.numel() for p in model.parameters()) == expected


def test_gradients_stay_in_the_ball():
    model = create_model("poincare_mini32", num_classes=3)
    model(100 * torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
