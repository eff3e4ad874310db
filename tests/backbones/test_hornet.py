"""HorNet, against the authors' outputs and a recursion written from the equations."""

import pytest
import torch
from torch import nn

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.hornet import GlobalLocalFilter, RecursiveGatedConv


@pytest.mark.paper("hornet")
@pytest.mark.parametrize("form", ["7x7", "gf"])
def test_the_authors_outputs(oracle, form):
    official = oracle(f"hornet__hornet_tiny_{form}")
    model = official.load(create_model(f"hornet_tiny_{form}"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    assert {"downsample_layers.3", "norm", "head"} <= set(official.agrees(model))


@pytest.mark.paper("hornet")
def test_published_parameter_counts():
    """Table 1 of arXiv 2207.14284, in millions."""
    published = {
        "hornet_tiny_7x7": 22.4,
        "hornet_tiny_gf": 23.0,
        "hornet_small_7x7": 49.5,
        "hornet_small_gf": 50.4,
        "hornet_base_7x7": 87.3,
        "hornet_base_gf": 88.4,
        "hornet_large_7x7": 194.5,
        "hornet_large_gf": 196.3,
    }
    for name, millions in published.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(name).parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.6), name


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_recursion_of_equation_3(order):
    torch.manual_seed(0)
    op = RecursiveGatedConv(16, order, scale=0.5)
    x = torch.randn(2, 16, 6, 7)
    joined = op.proj_in(x)
    p, at = joined[:, : op.dims[0]], op.dims[0]
    gates = nn.functional.conv2d(
        joined[:, at:], op.dwconv.weight, op.dwconv.bias, padding=3, groups=sum(op.dims)
    )
    at = 0
    for k, width in enumerate(op.dims):
        q = gates[:, at : at + width]
        at += width
        p = 0.5 * q * (op.pws[k - 1](p) if k else p)
    torch.testing.assert_close(op(x), op.proj_out(p))


@pytest.mark.paper("hornet")
@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_order_costs_hardly_anything(order):
    """The bound of section 3.1: H W C (2 K^2 + 11/3 C + 2)."""
    macs = count(RecursiveGatedConv(64, order), torch.zeros(1, 64, 14, 14)).macs
    assert macs < 14 * 14 * 64 * (2 * 49 + 11 / 3 * 64 + 2)


def test_the_filter_is_a_circular_convolution():
    """By the convolution theorem, channel by channel."""
    torch.manual_seed(0)
    op = GlobalLocalFilter(4, 6, 4).double()
    x = torch.randn(1, 2, 6, 6, dtype=torch.float64)
    kernel = torch.fft.irfft2(torch.view_as_complex(op.complex_weight.detach()), s=(6, 6))
    expected = torch.zeros_like(x)
    for i in range(6):
        for j in range(6):
            expected += kernel[None, :, i, j, None, None] * x.roll((i, j), (2, 3))
    torch.testing.assert_close(op._filter(x), expected, atol=1e-5, rtol=1e-5)


def test_the_filter_takes_any_size():
    op = GlobalLocalFilter(8, 14, 8)
    assert op(torch.randn(1, 8, 9, 5)).shape == (1, 8, 9, 5)


def test_too_high_an_order():
    with pytest.raises(FoveateError, match="order"):
        RecursiveGatedConv(12, 4)
