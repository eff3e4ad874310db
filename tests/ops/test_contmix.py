"""ContMix, against loops and the order of computation of its paper."""

import pytest
import torch
from torch.nn import functional as F

from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.depthwise import ResidualDepthwise
from foveate.ops.overlock import ContMix, LargeKernel, mix_inside, mix_inside_by_taps


@pytest.mark.paper("overlock")
@pytest.mark.parametrize("size", [(3, 3), (5, 4), (9, 7), (12, 8)])
def test_the_twins_agree(size):
    torch.manual_seed(0)
    x = torch.randn(2, 8, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, size[0] * size[1], 9, dtype=torch.float64, requires_grad=True)
    found = []
    for mix in (mix_inside, mix_inside_by_taps):
        out = mix(x, weights, 3)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, weights))))
    for ours, twin in zip(*found, strict=True):
        torch.testing.assert_close(ours, twin)


@pytest.mark.paper("overlock")
def test_windows_stay_inside():
    """As in neighbourhood attention (arXiv 2204.07143): the nearest places, always as many."""
    torch.manual_seed(0)
    high, wide, kernel = 6, 5, 5
    x = torch.randn(1, 2, high, wide)
    weights = torch.randn(1, 2, high * wide, kernel**2)
    found = mix_inside(x, weights, kernel)
    for i in range(high):
        for j in range(wide):
            top, left = min(max(i - 2, 0), high - 5), min(max(j - 2, 0), wide - 5)
            window = x[0, :, top : top + 5, left : left + 5].flatten(1)
            expected = (window * weights[0, :, i * wide + j]).sum(1)
            torch.testing.assert_close(found[0, :, i, j], expected)


@pytest.mark.paper("overlock")
@pytest.mark.parametrize("size", [(9, 8), (4, 6), (6, 3)])
def test_the_order_of_the_paper(size):
    """Affinities of every place first, then the linear map on them; double."""
    torch.manual_seed(0)
    op = ContMix(16, kernel_size=7, heads=4, context_dim=6, small=3, regions=3).double().eval()
    for p in op.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x, y, context = (torch.randn(2, c, *size, dtype=torch.float64) for c in (16, 16, 6))
    short = min(size)
    bigger = [max(side, int(7 / short * side)) if short < 7 else side for side in size]
    v, y_big, context_big = (F.interpolate(t, bigger, mode="bilinear") for t in (x, y, context))
    high, wide = bigger
    q = op.query(y_big).view(2, 4, 2, -1) * (16 / 4) ** -0.5
    k = op.key(F.adaptive_avg_pool2d(context_big, 3)).view(2, 4, 2, -1)
    affinity = torch.einsum("bgcn,bgcl->blgn", q, k)
    scores = op.weights(affinity).permute(0, 2, 3, 1)
    mixed = []
    for part, bias, side, half in zip(
        scores.split((9, 49), -1), (op.bias_small, op.bias_large), (3, 7), v.chunk(2, 1),
        strict=True,
    ):  # fmt: skip
        shares = torch.empty_like(part)
        for place in range(high * wide):
            i, j = divmod(place, wide)
            top = min(max(i - side // 2, 0), high - side) - i + side - 1
            left = min(max(j - side // 2, 0), wide - side) - j + side - 1
            offsets = bias[:, top : top + side, left : left + side].flatten(1)
            shares[:, :, place] = (part[:, :, place] + offsets).softmax(-1)
        mixed.append(mix_inside_by_taps(half, shares, side))
    expected = op.proj(F.adaptive_avg_pool2d(torch.cat(mixed, 1), size))
    torch.testing.assert_close(op(x, y, context), expected)


def test_kernels_cost_less_than_in_the_order_of_the_paper():
    op = ContMix(64, kernel_size=7, heads=4)
    found = count(op, torch.zeros(1, 64, 14, 14)).macs
    places, taps = 14 * 14, 25 + 49
    convolutions = places * 64 * (32 + 64) + 49 * 64 * 32
    mixing = 64 * places * places
    assert found == convolutions + mixing + places * 32 * taps + 49 * 32 * taps
    assert places * 32 * taps + 49 * 32 * taps < places * (49 * 32 + 4 * 49 * taps)


@torch.inference_mode()
def test_merged_kernels():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    for op in (LargeKernel(4, 9), ResidualDepthwise(4)):
        op.double().eval()
        before = op(x)
        op.merge_branches()
        after = op(x)
        torch.testing.assert_close(after, before)
        op.merge_branches()
        assert torch.equal(op(x), after)


def test_mistakes():
    with pytest.raises(FoveateError, match="heads"):
        ContMix(12, heads=4)
    with pytest.raises(FoveateError, match="odd"):
        ContMix(16, kernel_size=6)
    with pytest.raises(FoveateError, match="published"):
        LargeKernel(8, 21)
