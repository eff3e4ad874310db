"""PVT, against the authors' outputs; and that reduction costs what section 3.3 says."""

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.pvt import SpatialReductionAttention


@pytest.mark.paper("pvt")
def test_the_authors_outputs(oracle):
    official = oracle("pvt__pvt_tiny")
    model = create_model("pvt_tiny")
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    taps = official.agrees(official.load(model))
    assert {f"block{i}.1" for i in range(1, 5)} | {"norm", "head"} <= set(taps)


@pytest.mark.paper("pvt")
def test_published_parameter_counts():
    """Table 2 of arXiv 2102.12122, in millions."""
    published = {"tiny": 13.2, "small": 24.5, "medium": 44.2, "large": 61.4}
    for name, millions in published.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"pvt_{name}").parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.06), name


@pytest.mark.parametrize("ratio", [1, 2])
def test_attention_as_the_equations_have_it(ratio):
    """Equations 1 to 3, image by image, head by head, pixel by pixel."""
    torch.manual_seed(0)
    op = SpatialReductionAttention(6, heads=2, ratio=ratio).double()
    x = torch.randn(2, 6, 4, 6, dtype=torch.float64, requires_grad=True)
    seen = x
    if ratio > 1:
        patches = F.unfold(x, ratio, stride=ratio)
        reduced = op.sr.weight.flatten(1) @ patches + op.sr.bias[:, None]
        reduced = F.layer_norm(reduced.mT, (6,), op.norm.weight, op.norm.bias).mT
        seen = reduced.unflatten(2, (4 // ratio, 6 // ratio))
    q = F.conv2d(x, op.q.weight, op.q.bias).flatten(2)
    k, v = F.conv2d(seen, op.kv.weight, op.kv.bias).flatten(2).chunk(2, 1)
    slow = torch.zeros_like(q)
    for head in (slice(0, 3), slice(3, 6)):
        for pixel in range(24):
            scores = torch.einsum("bc,bcm->bm", q[:, head, pixel], k[:, head]) / 3**0.5
            part = torch.zeros_like(q)
            part[:, head, pixel] = torch.einsum("bm,bcm->bc", scores.softmax(1), v[:, head])
            slow = slow + part
    slow = F.conv2d(slow.unflatten(2, (4, 6)), op.proj.weight, op.proj.bias)
    fast = op(x)
    torch.testing.assert_close(fast, slow)
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (fast, slow)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.paper("pvt")
def test_the_cost_of_attending_falls_by_the_square_of_the_ratio():
    x = torch.randn(1, 16, 16, 16)
    macs = {}
    for ratio in (1, 4):
        op = SpatialReductionAttention(16, heads=2, ratio=ratio)
        layers = 2 * 16 * 16 * 256 + 2 * 16 * 16 * (256 // ratio**2)
        layers += 16 * 16 * 256 if ratio > 1 else 0
        macs[ratio] = count(op, x).macs - layers
    assert macs[1] == 2 * 256 * 256 * 16
    assert macs[1] == 16 * macs[4]


def test_other_sizes_scale_the_places_and_leave_the_token_alone():
    model = create_model("pvt_mini32", num_classes=3).eval()
    places = model.stages[2].positions.embedding
    assert places.shape == (1, 1 + 16, 192)
    torch.nn.init.constant_(places[:, 1:].data, 0.5)
    large = model.forward_intermediates(torch.randn(2, 3, 48, 80), intermediates_only=True)
    assert [m.shape for m in large] == [(2, 48, 24, 40), (2, 96, 12, 20), (2, 192, 6, 10)]


def test_a_map_too_small_to_reduce_is_said():
    with pytest.raises(FoveateError, match="8 times smaller"):
        SpatialReductionAttention(8, 2, ratio=8)(torch.randn(1, 8, 6, 6))
    with pytest.raises(FoveateError, match="3 heads"):
        SpatialReductionAttention(8, 3)
