"""Hyper-kernels and what they are multiplied with, against sums over coordinates and pixels."""

import math

import pytest
import torch
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.ops.hyperzzw_terminator import (
    GroupStandard,
    HyperInteraction,
    LocalHyperZZW,
    RecursiveGatedUnit,
    global_product,
    sequence_product,
)
from foveate.ops.slow_network import SineFilter, SlowNetwork, hyper_kernel


@pytest.mark.paper("hyperzzw_terminator")
@pytest.mark.parametrize("size", [(5, 4), (7,)])
def test_the_kernel_is_a_product_of_sines(size):
    """Place by place, from the coordinates of a grid from -1 to 1."""
    torch.manual_seed(0)
    net = SlowNetwork(size, 3, hidden=6, layers=2).double()
    torch.nn.init.normal_(net.places)
    found = net(size)
    assert found.shape == (1, 3, *size)
    for place in torch.cartesian_prod(*map(torch.arange, size)).view(-1, len(size)):
        at = torch.tensor(
            [2 * i / (n - 1) - 1 for i, n in zip(place.tolist(), size, strict=True)],
            dtype=torch.float64,
        )
        x = torch.sin(net.filters[0].weight @ at + net.filters[0].bias)
        here = tuple(place.tolist())
        for sines, linear in zip(net.filters[1:], net.linears, strict=True):
            x = torch.sin(sines.weight @ at + sines.bias) * linear(x) + net.places[0, 0][here]
        torch.testing.assert_close(found[(0, slice(None), *here)], net.out(x), atol=1e-8, rtol=1e-8)


def test_sines_of_many_turns_stay_exact_in_single_precision():
    """Against double precision; sines of whole phases in single are wrong in the third digit."""
    torch.manual_seed(0)
    sines = SineFilter(2, 16, 6.0, 2000.0)
    assert sines.weight.abs().max() > 1e4
    exact = sines((32, 32)).clone()
    exact = sines.double()((32, 32)).float()
    sines.float()
    assert (sines((32, 32)) - exact).abs().max() < 1e-4
    line = torch.linspace(-1, 1, 32)
    phases = torch.einsum(
        "ha,axy->hxy", sines.weight, torch.stack(torch.meshgrid(line, line, indexing="ij"))
    )
    assert (torch.sin(phases)[None] - exact).abs().max() > 1e-3


@pytest.mark.paper("hyperzzw_terminator")
def test_the_context_multiplies_each_renormalised_layer():
    torch.manual_seed(0)
    net = SlowNetwork((3, 3), 2, hidden=4, layers=2).double()
    context = torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    x = net.filters[0]((3, 3))
    for i in range(2):
        mixed = net.linears[i](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = net.filters[i + 1]((3, 3)) * mixed + net.places
        length = x.square().sum((2, 3), keepdim=True).sqrt()
        x = (x + 0.1 * x / length) * context[i]
    expected = net.out(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(net((3, 3), context), expected)


@pytest.mark.paper("hyperzzw_terminator")
def test_the_global_product_by_hand():
    weights, x = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = torch.zeros(2, 3, 4, 4)
    for i in range(4):
        for j in range(4):
            for k in range(4):
                expected[:, :, i, j] += weights[:, :, i, k] * x[:, :, k, j]
    torch.testing.assert_close(global_product(weights, x), expected)
    three = global_product(weights, torch.cat((x, 2 * x, -x), 3)).chunk(3, 3)
    torch.testing.assert_close(three[1], 2 * expected)
    assert global_product(torch.randn(1, 3, 4, 6), torch.randn(1, 3, 4, 6)).shape == (1, 3, 4, 6)


@pytest.mark.paper("hyperzzw_terminator")
@pytest.mark.parametrize("length", [6, 7])
def test_the_sequence_product_slides(length):
    """The FFT against sliding over the padded sequence, outputs and gradients."""
    kernel, x = (torch.randn(2, 3, 1, length, requires_grad=True) for _ in range(2))
    found = sequence_product(kernel, x)
    half = length // 2
    padded = F.pad(x, (length - 1 - half, half))
    windows = padded.unfold(3, length, 1)
    expected = torch.einsum("bchlk,bchk->bchl", windows, kernel.flip(-1))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(found)
    ours = torch.autograd.grad((weight * found).sum(), (kernel, x))
    theirs = torch.autograd.grad((weight * expected).sum(), (kernel, x))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_local_kernel_follows_the_batch_and_then_stays():
    torch.manual_seed(0)
    op = LocalHyperZZW(4, (3, 3), momentum=1.0)
    x = torch.randn(5, 4, 8, 8)
    seen = op.reduce(F.adaptive_avg_pool2d(x, 3)).mean(0, keepdim=True)
    first = op.kernel_of(x)
    torch.testing.assert_close(op.context, seen)
    assert not torch.allclose(first, op.kernel_of(2 * x))
    op.kernel_of(x)
    torch.testing.assert_close(op.eval().kernel_of(torch.zeros_like(x)), first)


def test_interaction_and_gate_by_their_formulas():
    torch.manual_seed(0)
    x, by = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    op = HyperInteraction(4, 8, SlowNetwork((5, 5), 1, 8, 2))
    channel = op.channel((4,)).view(1, 4, 1, 1) * by.mean((2, 3), keepdim=True) ** 2
    spatial = hyper_kernel(op.spatial, by) * by.mean(1, keepdim=True) ** 2
    torch.testing.assert_close(op(x, by), x * torch.sigmoid(channel * spatial))
    unit = RecursiveGatedUnit(4, (5, 5))
    torch.nn.init.normal_(unit.places)
    gate = F.gelu(F.instance_norm(unit.key(x) * unit.query(unit.value(x)))) + unit.places
    torch.testing.assert_close(unit(x), unit.out(gate))


def test_groups_in_turn():
    x = 3 + 2 * torch.randn(4, 24, 5, 5)
    y = GroupStandard(24, 12)(x).unflatten(1, (12, 2))
    expected = x.unflatten(1, (12, 2))
    for i in range(12):
        axes = (0, 2, 3) if i % 2 == 0 else (2, 3)
        group = expected[:, i]
        centred = group - group.mean(axes, keepdim=True)
        variance = centred.square().mean(axes, keepdim=True)
        torch.testing.assert_close(y[:, i], centred / (variance + 1e-5).sqrt())


def test_mistakes():
    with pytest.raises(FoveateError, match="groups"):
        GroupStandard(20)
    assert math.prod(SlowNetwork((6,), 2, 4, 1)((9,)).shape) == 18
