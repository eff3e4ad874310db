"""Quantised layers against loops over integers, torch's own quantised kernels, and algebra."""

import copy
import warnings
from fractions import Fraction

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.merge import merge
from foveate.surgery import integers
from foveate.surgery.quant_whitepaper import Quantise, QuantisedLayer

pytestmark = pytest.mark.paper("quant_whitepaper")


class Net(nn.Module):
    """What there is to meet: a residual, a pool, groups, ReLUs of both kinds, a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(True))
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 12, 1, stride=2, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.max_pool2d(x + F.relu6(self.norm(self.deep(x))), 2)
        return self.head(F.relu(self.wide(x)).mean((2, 3)))


def disturbed(net=None):
    torch.manual_seed(0)
    net = net or Net()
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dtype.is_floating_point:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return net.eval()


def images(seed=1):
    return torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed))


def layers(model):
    return [m for m in model.modules() if isinstance(m, QuantisedLayer)]


# ---------------------------------------------------------------- the quantiser


def written_out(x, scale, zero, low, high):
    """Straight-through, in autograd's own words."""
    q = (x / scale).round() + zero
    passes = torch.where((q >= low) & (q <= high), x, x.detach())
    return passes + ((q.clamp(low, high) - zero) * scale - x).detach()


@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_quantiser_and_its_gradients(bits, channels):
    torch.manual_seed(0)
    top = 2**bits - 1
    x = torch.randn(5, 40, requires_grad=True)
    if channels:
        low, high = -(top // 2), top // 2
        grid = integers.symmetric_grid(x * 0.7, bits, True)
        scale, zero = grid[0][:, None], 0
        assert torch.allclose(grid[0] * high, (0.7 * x).abs().amax(1))
    else:
        low, high = 0, top
        grid = integers.affine_grid(torch.tensor(-0.8), torch.tensor(1.7), bits)
        scale, zero = grid
        assert abs(scale.item() - 2.5 / top) < 1e-6
        assert zero == round(0.8 / (2.5 / top))
    fake = integers.fake_quantise(x, grid, low, high)
    ints = integers.quantise(x, grid, low, high)
    assert ints.min() >= low
    assert ints.max() <= high
    assert torch.equal((ints - zero) * scale, fake)
    slow = written_out(x, scale, zero, low, high)
    torch.testing.assert_close(fake, slow, atol=1e-6, rtol=1e-6)
    weights = torch.randn_like(x)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (fake, slow)]
    assert torch.equal(*gradients)
    assert (gradients[0] == 0).any()


def test_zero_is_on_every_grid():
    for low, high in ((0.5, 2.0), (-3.0, -1.0), (-1.0, 2.0), (0.0, 0.0)):
        grid = integers.affine_grid(torch.tensor(low), torch.tensor(high), 8)
        assert integers.fake_quantise(torch.zeros(1), grid, 0, 255) == 0


def test_ranges_against_loops():
    batches = [torch.randn(20) * (i + 1) for i in range(12)]
    extremes, average = integers.Range(8, None), integers.Range(8, 0.8)
    low = high = 0.0
    for i, batch in enumerate(batches):
        extremes.observe(batch)
        average.observe(batch)
        decay = min(0.8, i / (i + 1))
        low = decay * low + (1 - decay) * batch.min().item()
        high = decay * high + (1 - decay) * batch.max().item()
    assert extremes.high == torch.cat(batches).max()
    assert extremes.low == torch.cat(batches).min()
    assert (average.low.item(), average.high.item()) == pytest.approx((low, high), rel=1e-5)


# ---------------------------------------------------------------- integers


def test_fixed_point_multiplication_is_exact_rational_arithmetic():
    torch.manual_seed(0)
    factors = torch.cat((10 ** (4 * torch.rand(300) - 4), torch.tensor([0.5, 1.0, 1 - 1e-12])))
    multiplier, shift = integers.fixed_point(factors)
    assert multiplier.min() >= 2**30
    torch.testing.assert_close(multiplier.double() / 2.0 ** shift.double(), factors.double())
    x = torch.randint(-(2**20), 2**20, factors.shape, dtype=torch.int32)
    found = integers.multiply(x, multiplier, shift).tolist()
    for a, m, s, y in zip(x.tolist(), multiplier.tolist(), shift.tolist(), found, strict=True):
        exact = Fraction(a * m, 2**s)
        assert -Fraction(1, 2) <= exact - y < Fraction(1, 2)


def gemmlowp(a: int, m: int, right: int) -> int:
    """SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT, one number at a time."""
    product = a * m
    nudged = product + ((1 << 30) if product >= 0 else 1 - (1 << 30))
    upper = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)
    down, rest = divmod(upper, 2**right)
    half = Fraction(2**right, 2)
    return down + (rest > half or (rest == half and upper >= 0))


def test_the_two_roundings_of_gemmlowp():
    torch.manual_seed(0)
    factors = 10 ** (3 * torch.rand(2000) - 3.5)
    x = torch.randint(-(2**14), 2**14, factors.shape, dtype=torch.int32)
    multiplier, shift = integers.fixed_point(factors)
    found = integers.multiply_twice_rounded(x, multiplier, shift).tolist()
    numbers = zip(x.tolist(), multiplier.tolist(), shift.tolist(), strict=True)
    wanted = [gemmlowp(a << max(0, 31 - s), m, max(0, s - 31)) for a, m, s in numbers]
    assert found == wanted
    once = integers.multiply(x, multiplier, shift)
    assert (once - torch.tensor(found)).abs().max() <= 1


def slow_layer(layer, q):
    """An integer convolution as nested loops over int64."""
    weight, x = layer.weight.numpy().astype(np.int64), q.numpy().astype(np.int64)
    (s, _), (p, _), (d, _) = (layer.geometry[k] for k in ("stride", "padding", "dilation"))
    groups = layer.geometry["groups"]
    x = np.pad(x - layer.input_zero.item(), ((0, 0), (0, 0), (p, p), (p, p)))
    outs, ins, k, _ = weight.shape
    side = (x.shape[2] - d * (k - 1) - 1) // s + 1
    y = np.zeros((len(x), outs, side, side), np.int64)
    for o, i, j in np.ndindex(outs, side, side):
        first = o // (outs // groups) * ins
        patch = x[:, first : first + ins, i * s : i * s + d * k : d, j * s : j * s + d * k : d]
        total = (patch * weight[o]).sum((1, 2, 3)) + layer.bias[o].item()
        m, shift = layer.multiplier[o].item(), layer.shift[o].item()
        y[:, o, i, j] = [(int(t) * m + (1 << (shift - 1)) >> shift) for t in total]
    return np.clip(y + layer.output_zero.item(), 0, layer.top)


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (3, 5)])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False),
        nn.Conv2d(48, 3, 7, padding=3),
    ],
    ids=["plain", "grouped", "dilated", "wide"],
)
def test_integer_convolutions_bit_by_bit(conv, bits):
    torch.manual_seed(1)
    x = torch.randn(2, conv.in_channels, 7, 7)
    edit = Quantise(weight_bits=bits[0], activation_bits=bits[1])
    model, _ = edit.apply(nn.Sequential(conv, nn.ReLU()), x)
    found = layers(model)[0].integers()
    q = torch.randint(0, 2 ** bits[1], x.shape, dtype=torch.int32)
    assert np.array_equal(found.run(q).numpy(), slow_layer(found, q))


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_torch_kernels_compute_the_same(kind):
    """Weights have 7 bits, so that no sum of two products overflows 16 bits in torch's kernels;
    biases lie on the grid of the sums, since some of those kernels keep them in float."""
    torch.manual_seed(0)
    layer = nn.Conv2d(5, 6, 3, padding=1) if kind == "conv" else nn.Linear(5, 6)
    x = torch.randn(3, 5, 9, 9) if kind == "conv" else torch.randn(200, 5)
    model, _ = Quantise(weight_bits=7).apply(nn.Sequential(layer), x)
    ours = layers(model)[0].integers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scales = layers(model)[0]._weight_grid(layer.weight)[0].double()
        bias = (ours.bias * scales * ours.input_scale).float()
        zeros = torch.zeros(6, dtype=torch.long)
        weight = torch.quantize_per_channel(layer.weight.detach(), scales, zeros, 0, torch.qint8)
        grid = (ours.input_scale.item(), ours.input_zero.item())
        out = (ours.output_scale.item(), ours.output_zero.item())
        taken = torch.quantize_per_tensor(x, *grid, torch.quint8)
        assert torch.equal(weight.int_repr(), ours.weight)
        if kind == "conv":
            packed = torch.ops.quantized.conv2d_prepack(weight, bias, [1, 1], [1, 1], [1, 1], 1)
            theirs = torch.ops.quantized.conv2d(taken, packed, *out)
        else:
            packed = torch.ops.quantized.linear_prepack(weight, bias)
            theirs = torch.ops.quantized.linear(taken, packed, *out)
        q = taken.int_repr().int()
        assert torch.equal(q, integers.quantise(x, (ours.input_scale, ours.input_zero), 0, 255))
        difference = (theirs.int_repr().int() - ours.run(q)).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 1e-3


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("channels", [True, False])
@pytest.mark.parametrize("bits", [8, 4])
def test_fake_quantisation_is_integer_execution(bits, channels):
    """In float64, where sums are exact enough, every layer's output is the same number."""
    edit = Quantise(weight_bits=bits, activation_bits=bits, per_channel=channels)
    model, _ = edit.apply(disturbed().double(), images().double())
    seen = {True: [], False: []}
    for layer in layers(model):
        layer.frozen = True
        layer.register_forward_hook(lambda layer, x, y: seen[layer.training].append(y.detach()))
    for training in (True, False):
        model.train(training)(images(2).double())
    assert len(seen[True]) == 4
    for fake, exact in zip(seen[True], seen[False], strict=True):
        torch.testing.assert_close(fake, exact, atol=1e-12, rtol=1e-12)
        assert exact.unique().numel() <= 2**bits


def test_the_edited_model_is_near_and_merges_to_integers(tmp_path):
    model, x = disturbed(), images()
    edited, coverage = Quantise().apply(model, [x, images(3)])
    assert [(line.name, line.changed) for line in coverage] == [
        ("stem.0", True),
        ("deep", True),
        ("wide", True),
        ("head", True),
    ]
    assert coverage[0].why == "quantised with stem.1 folded in with its ReLU"
    assert [layer.input is None for layer in layers(edited)] == [False, True, False, False]
    assert isinstance(model.stem[0], nn.Conv2d)
    with torch.no_grad():
        before, after = model(x), edited(x)
    assert (before - after).abs().max() < 0.03 * before.abs().max()
    merged = merge(copy.deepcopy(edited))
    assert torch.equal(merged(x), after)
    assert not [p for p in merged.parameters()]
    assert count(merged, x).macs == count(model, x).macs
    assert count(merged, x).uncounted == {}


def test_files_shrink_to_a_quarter(tmp_path):
    model = timm.create_model("resnet18", num_classes=10)
    edited, coverage = Quantise().apply(model, torch.randn(1, 3, 32, 32))
    assert all(line.changed for line in coverage)
    assert [line.why.count("ReLU") for line in coverage].count(1) == 9
    save_file(model.state_dict(), tmp_path / "before.safetensors")
    save_file(merge(edited).state_dict(), tmp_path / "after.safetensors")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("before", "after")]
    assert 3.9 < sizes[0] / sizes[1] < 4.0


def test_channels_help_where_norms_scale_them_apart():
    """Folded scales that differ a hundredfold ruin one scale a layer, and not one a channel."""
    model = disturbed()
    with torch.no_grad():
        model.norm.running_var.copy_(10.0 ** torch.linspace(-3, 3, 8))
    x, errors = images(), {}
    for channels in (True, False):
        edited, _ = Quantise(per_channel=channels, weight_bits=6).apply(model, x)
        with torch.no_grad():
            errors[channels] = (edited(x) - model(x)).square().mean().item()
    assert errors[True] < 0.5 * errors[False]


# ---------------------------------------------------------------- norms, folded while training


class Alone(nn.Module):
    def __init__(self, bias):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=bias), nn.BatchNorm2d(4, momentum=0.3)

    def forward(self, x):
        return self.norm(self.conv(x)).relu()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_folded_norms_train_as_norms(bias, frozen, monkeypatch):
    """With a quantiser that does nothing, outputs, gradients and statistics are batch norm's."""
    model = disturbed(Alone(bias)).double()
    edited, _ = Quantise().apply(model, images().double())
    layer = layers(edited)[0]
    layer.frozen = frozen
    for module in ("quant_whitepaper", "integers"):
        monkeypatch.setattr(f"foveate.surgery.{module}.fake_quantise", lambda x, grid, low, high: x)
    monkeypatch.setattr(
        layer, "_weight_grid", lambda weight: (torch.full((4,), 1e-12), torch.zeros(4).int())
    )
    model.train()
    edited.train()
    if frozen:
        model.norm.eval()
    x = images(5).double()
    outs = [net(x) for net in (model, edited)]
    torch.testing.assert_close(*outs, atol=1e-9, rtol=1e-9)
    for out in outs:
        out.square().sum().backward()
    torch.testing.assert_close(model.norm.running_mean, layer.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, layer.norm.running_var)
    for theirs, ours in ((model.conv, layer.layer), (model.norm, layer.norm)):
        torch.testing.assert_close(theirs.weight.grad, ours.weight.grad, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(model.norm.bias.grad, layer.norm.bias.grad)


def test_weights_do_not_jitter_with_the_batch():
    """What is quantised is W γ / σ of the running σ, until and after the statistics are frozen."""
    edited, _ = Quantise().apply(disturbed(), images())
    layer = layers(edited.train())[0]
    before = layer.integers().weight
    layer.norm.momentum = 0.0
    edited(5 * images(7))
    assert torch.equal(layer.integers().weight, before)


# ---------------------------------------------------------------- what is left, and mistakes


def test_what_is_left_and_why():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.mirror = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
            self.unused = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x):
            x = self.mirror(self.first(x)).flatten(2).transpose(1, 2)
            return self.attention(x, x, x)[0]

    edited, coverage = Quantise().apply(Odd(), images())
    assert {line.name: line.why for line in coverage} == {
        "first": "quantised",
        "mirror": "left because it does not pad with zeros",
        "unused": "left because the model did not call it",
        "attention.out_proj": "left because the model did not call it",
    }
    assert edited(images()).shape == (6, 144, 4)


def test_mistakes():
    for fields, message in (
        ({"weight_bits": 1}, "weight_bits is 1"),
        ({"activation_bits": 9}, "activation_bits is 9"),
        ({"decay": 1.0}, "decay is 1.0"),
    ):
        with pytest.raises(FoveateError, match=message):
            Quantise(**fields)
    with pytest.raises(FoveateError, match="needs images"):
        Quantise().apply(Net())
    with pytest.raises(FoveateError, match="skip names 'nose'"):
        Quantise(skip=("nose",)).apply(Net(), images())
    with pytest.raises(FoveateError, match="nothing to change"):
        Quantise().apply(nn.ReLU(), images())
