"""Kernels made of something else, against the dense kernels that they stand for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.apriori_lowrank_conv import OneWayConv2d
from foveate.ops.merge import merge
from foveate.ops.smpconv import SelfMovingPoints
from foveate.ops.weighted_conv import DENSITIES, WeightedConv2d, density_of


@pytest.mark.paper("apriori_lowrank_conv")
@pytest.mark.parametrize("stride", [1, 2])
def test_one_way_filters_are_a_convolution_of_low_rank(stride):
    torch.manual_seed(0)
    op = OneWayConv2d(6, 8, 5, rank=3, stride=stride).double()
    x = torch.randn(2, 6, 9, 10, dtype=torch.float64)
    dense = F.conv2d(x, op.kernel(), op.outward.bias, stride, 2)
    torch.testing.assert_close(op(x), dense)
    matrix = op.kernel().flatten(1)
    assert torch.linalg.matrix_rank(matrix) == 3


@pytest.mark.paper("apriori_lowrank_conv")
def test_parameters_of_a_sum_of_products():
    """R (C_in + k + k + C_out) weights instead of C_in C_out k^2."""
    op = OneWayConv2d(64, 32, 3, rank=10, bias=False)
    assert sum(p.numel() for p in op.parameters()) == 10 * (64 + 3 + 3 + 32)
    assert count(op, torch.zeros(1, 64, 8, 8)).macs == 64 * 10 * (64 + 3 + 3 + 32)


@pytest.mark.paper("weighted_conv")
@pytest.mark.parametrize("kernel", DENSITIES)
def test_the_density_folds_into_the_weights(kernel):
    torch.manual_seed(0)
    op = WeightedConv2d(4, 6, kernel, padding=kernel // 2)
    x = torch.randn(2, 4, 9, 9)
    line = (*DENSITIES[kernel], 1.0, *reversed(DENSITIES[kernel]))
    phi = torch.tensor([[a * b for b in line] for a in line])
    before = op(x)
    torch.testing.assert_close(before, F.conv2d(x, op.weight * phi, op.bias, padding=kernel // 2))
    merge(op)
    assert torch.equal(op(x), before)
    assert torch.equal(F.conv2d(x, op.weight, op.bias, padding=kernel // 2), before)


@pytest.mark.paper("weighted_conv")
def test_it_only_changes_how_fast_taps_learn():
    """A step of gradient descent moves the folded kernel by the square of the density."""
    plain = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    weighted = density_of(plain)
    x, y = torch.randn(4, 3, 8, 8), torch.randn(4, 5, 8, 8)
    steps = []
    for op in (plain, weighted):
        (op(x) - y).square().mean().backward()
        steps.append(op.weight.grad * (op.density if op is weighted else 1))
    torch.testing.assert_close(steps[1], steps[0] * weighted.density.square())


def test_densities_that_do_not_fit():
    with pytest.raises(FoveateError, match="density"):
        WeightedConv2d(1, 1, 3, (0.5, 0.5))
    with pytest.raises(FoveateError, match="density"):
        WeightedConv2d(1, 1, 9)
    with pytest.raises(FoveateError, match="square"):
        density_of(nn.Conv2d(1, 1, (3, 5)))


@pytest.mark.paper("smpconv")
def test_points_draw_the_kernel_of_equation_2():
    """Against a loop over taps and points."""
    torch.manual_seed(0)
    op = SelfMovingPoints(3, 7, 5)
    nn.init.uniform_(op.positions, -1, 1)
    nn.init.uniform_(op.radii, 0.2, 0.9)
    places, radii, weight = (p.detach() for p in (op.positions, op.radii, op.weight))
    expected = torch.zeros(3, 7, 7)
    for i in range(7):
        for j in range(7):
            right, up = -1 + j / 3, 1 - i / 3
            for n in range(5):
                apart = abs(places[n, 0] - right) + abs(places[n, 1] - up)
                share = max(0.0, 1 - float(apart / radii[n]))
                expected[:, i, j] += share * weight[:, n]
    torch.testing.assert_close(op.kernel(), expected)
    x = torch.randn(1, 3, 9, 8)
    torch.testing.assert_close(
        op(x), F.conv2d(x, expected.unsqueeze(1), padding=3, groups=3), atol=1e-6, rtol=1e-5
    )


@pytest.mark.paper("smpconv")
def test_gradients_of_points():
    torch.manual_seed(0)
    op = SelfMovingPoints(2, 5, 4).double()
    nn.init.uniform_(op.positions, -0.9, 0.9)
    nn.init.uniform_(op.radii, 0.4, 0.9)
    names = [name for name, _ in op.named_parameters()]
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)

    def call(*values):
        return torch.func.functional_call(op, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, tuple(op.parameters()))


def test_far_fewer_parameters_than_the_kernel():
    op = SelfMovingPoints(64, 31, 64)
    assert sum(p.numel() for p in op.parameters()) < 0.1 * 64 * 31 * 31


def test_even_kernels():
    for build in (lambda: SelfMovingPoints(1, 4), lambda: OneWayConv2d(1, 1, 4)):
        with pytest.raises(FoveateError, match="odd"):
            build()
    with pytest.raises(FoveateError, match="rank"):
        OneWayConv2d(1, 1, 3, rank=0)
