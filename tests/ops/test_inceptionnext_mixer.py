"""The Inception mixer against its definition."""

import pytest
import torch
from torch.nn.functional import conv2d, pad

from foveate.errors import FoveateError
from foveate.ops.inceptionnext import InceptionDepthwise


@pytest.mark.paper("inceptionnext")
def test_equals_one_large_depthwise_kernel():
    """Each branch is a depthwise kernel with zeros around: together one 11x11 convolution."""
    torch.manual_seed(0)
    mixer = InceptionDepthwise(16)
    images = torch.randn(2, 16, 14, 13, requires_grad=True)
    kernel = torch.zeros(16, 1, 11, 11)
    kernel[:10, 0, 5, 5] = 1
    kernel[10:12] = pad(mixer.dwconv_hw.weight, (4, 4, 4, 4))
    kernel[12:14] = pad(mixer.dwconv_w.weight, (0, 0, 5, 5))
    kernel[14:] = pad(mixer.dwconv_h.weight, (5, 5))
    bias = torch.cat(
        [torch.zeros(10), *(getattr(mixer, f"dwconv_{n}").bias for n in ("hw", "w", "h"))]
    )
    slow = conv2d(images, kernel, bias, padding=5, groups=16)
    fast = mixer(images)
    torch.testing.assert_close(fast, slow)
    weights = torch.randn_like(fast)
    (grad,) = torch.autograd.grad((fast * weights).sum(), images)
    (slow_grad,) = torch.autograd.grad((slow * weights).sum(), images)
    torch.testing.assert_close(grad, slow_grad)


@pytest.mark.parametrize(
    "options", [{"band_kernel": 4}, {"square_kernel": 2}, {"branch_ratio": 0.5}]
)
def test_impossible_options(options):
    with pytest.raises(FoveateError):
        InceptionDepthwise(16, **options)
    with pytest.raises(FoveateError, match="at least one channel"):
        InceptionDepthwise(7)
