"""Maps that no cache would hold are written past the caches, and hold the same numbers."""

import pytest
import torch
from torch.nn import functional as F

from foveate.ops.kernels import gelu, inception_mix, layer_norm_channels
from foveate.ops.kernels.inception import plain_inception_mix
from foveate.ops.kernels.layer_norm import plain_layer_norm_channels

KERNELS = [torch.randn(4, 1, 3, 3), torch.randn(4), torch.randn(4, 1, 1, 11), torch.randn(4)]
PAIRS = {
    "gelu": (gelu, F.gelu, lambda channels: ()),
    "norm": (
        layer_norm_channels,
        plain_layer_norm_channels,
        lambda channels: (torch.rand(channels), torch.randn(channels)),
    ),
    "mixer": (inception_mix, plain_inception_mix, lambda channels: KERNELS),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", [(2, 36, 352, 352), (2, 36, 352, 349), (8, 360, 56, 53)])
def test_large_maps(library, name, shape):
    ours, twin, weights = PAIRS[name]
    x, rest = torch.randn(shape, requires_grad=True), weights(shape[1])
    assert x.numel() * 4 > 32 << 20
    found, expected = ours(x, *rest), twin(x, *rest)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5)
    gradient = torch.randn_like(found)
    pair = [torch.autograd.grad(y, x, gradient)[0] for y in (found, expected)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-4)
