"""Attention over channels, against timm's layers with the same weights and the paper's counts."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.eca import EfficientChannelAttention, adaptive_kernel
from foveate.ops.se import SqueezeExcite


@pytest.mark.paper("eca")
def test_eca_equals_timm():
    from timm.layers import EcaModule

    torch.manual_seed(0)
    theirs, ours = EcaModule(kernel_size=5), EfficientChannelAttention(64, 5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 64, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.paper("eca")
def test_eighty_parameters_in_resnet50():
    """Table 2 of the paper; with the published widths, and with the adaptive ones."""
    with torch.device("meta"):
        plain, published = (
            sum(p.numel() for p in create_model(name).parameters())
            for name in ("resnet50", "eca_resnet50")
        )
    assert published - plain == 80
    assert sum(n * adaptive_kernel(256 * 2**i) for i, n in enumerate((3, 4, 6, 3))) == 80


def test_adaptive_widths():
    assert [adaptive_kernel(2**i) for i in range(3, 12)] == [1, 3, 3, 3, 3, 5, 5, 5, 5]


def test_even_widths_have_no_centre():
    with pytest.raises(FoveateError, match="odd"):
        EfficientChannelAttention(8, 4)


@pytest.mark.paper("se")
def test_se_equals_timm():
    from timm.layers import SqueezeExcite as Theirs

    torch.manual_seed(0)
    theirs, ours = Theirs(64, rd_ratio=1 / 16, rd_divisor=1), SqueezeExcite(64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 64, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.paper("se")
def test_parameters_that_se_adds():
    """Section 6.1: 2 / r times the sum of N C^2 over stages, 2.5 M in ResNet-50 and about 10%."""
    with torch.device("meta"):
        plain, ours = (
            sum(p.numel() for p in create_model(name).parameters())
            for name in ("resnet50", "seresnet50")
        )
    widths = [(n, 256 * 2**i) for i, n in enumerate((3, 4, 6, 3))]
    matrices = sum(2 * n * c * c // 16 for n, c in widths)
    biases = sum(n * (c + c // 16) for n, c in widths)
    assert ours - plain == matrices + biases
    assert matrices / 1e6 == pytest.approx(2.5, abs=0.05)
