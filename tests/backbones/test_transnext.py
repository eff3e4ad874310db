"""TransNeXt, against the authors' outputs and a dense attention with a mask."""

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.measure import count
from foveate.ops.attention import split_heads
from foveate.ops.transnext import AggregatedAttention, CosineAttention, _inside, _pairs


@pytest.mark.paper("transnext")
def test_the_authors_outputs(oracle):
    official = oracle("transnext__transnext_micro")
    model = official.load(create_model("transnext_micro"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    found = set(official.agrees(model))
    assert {"block1.0", "block3.14", "block4.1", "norm1", "norm4", "head"} <= found


@pytest.mark.paper("transnext")
def test_published_parameter_counts():
    """Table 1 of arXiv 2311.17132, in millions."""
    for name, millions in {"micro": 12.8, "tiny": 28.2, "small": 49.7, "base": 89.7}.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"transnext_{name}").parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.06), name


@pytest.mark.paper("transnext")
@pytest.mark.parametrize("size", [(8, 8), (9, 6)])
def test_one_softmax_over_window_and_pool(size):
    """Against attention to every pixel, masked to the window, beside the pooled ones; double."""
    torch.manual_seed(0)
    high, wide = size
    op = AggregatedAttention(12, 3, ratio=3, pretrain=size).double()
    for p in op.parameters():
        torch.nn.init.normal_(p, std=0.5)
    x = torch.randn(2, 12, *size, dtype=torch.float64)
    q = F.normalize(split_heads(op.q(x), op.heads), dim=-1)
    k, v = (split_heads(t, op.heads) for t in op.kv(x).chunk(2, dim=1))
    small = (high // 3, wide // 3)
    pool = F.adaptive_avg_pool2d(F.gelu(op.sr(x)), small).permute(0, 2, 3, 1)
    pool = op.norm(pool).permute(0, 3, 1, 2)
    far_k, far_v = (split_heads(t, op.heads) for t in op.kv(pool).chunk(2, dim=1))

    at = torch.stack(torch.meshgrid(torch.arange(high), torch.arange(wide), indexing="ij"), -1)
    at = at.view(-1, 2)
    apart = at[None] - at[:, None]  # from query to key
    near = (apart.abs() <= 1).all(-1)
    tap = ((apart[..., 0] + 1) * 3 + apart[..., 1] + 1).clamp(0, 8)
    length = (near.sum(1) + small[0] * small[1]).double().log()
    scaled = (q + op.query_embedding) * F.softplus(op.temperature) * length[:, None]
    scores = scaled @ F.normalize(k, dim=-1).mT + op.relative_pos_bias_local[:, tap]
    scores = scores.masked_fill(~near, float("-inf"))
    far = scaled @ F.normalize(far_k, dim=-1).mT + op.bias(size, small)
    shares = torch.cat((scores, far), -1).softmax(-1)
    local, pooled = shares[..., : high * wide], shares[..., high * wide :]
    extra = (q @ op.learnable_tokens + op.learnable_bias).gather(
        -1, tap.expand(2, 3, -1, -1)
    ) * near
    mixed = (local + extra) @ v + pooled @ far_v
    expected = op.proj(mixed.mT.flatten(1, 2).unflatten(2, size))
    torch.testing.assert_close(op(x), expected)


@pytest.mark.paper("transnext")
def test_offsets_are_those_of_equation_8():
    table, index = _pairs((4, 4), (2, 2), (4, 4))
    found = table[index]
    pooled = torch.tensor([0.5, 2.5])
    for query in range(16):
        for key in range(4):
            down = (query // 4 - pooled[key // 2]) / 3 * 8
            right = (query % 4 - pooled[key % 2]) / 3 * 8
            both = torch.stack((down, right))
            expected = both.sign() * (both.abs() + 1).log2() / 3
            torch.testing.assert_close(found[query, key], expected)


def test_the_edge_of_the_map():
    inside = _inside(3, 4, 3, torch.device("cpu"))
    assert inside.sum(0).tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]


def test_the_linear_mode_is_linear():
    op = AggregatedAttention(24, 1, pooled=7)
    macs = [count(op, torch.zeros(1, 24, side, side)).macs for side in (28, 56)]
    table = 2 * 512 + 512
    pairs = [len(_pairs((side, side), (7, 7), (56, 56))[0]) * table for side in (28, 56)]
    assert (macs[1] - pairs[1]) / (macs[0] - pairs[0]) == pytest.approx(4, rel=0.02)


def test_gradients_flow_everywhere():
    model = create_model("transnext_mini32", num_classes=3)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_mistakes():
    with pytest.raises(FoveateError, match="heads"):
        CosineAttention(10, 3)
    with pytest.raises(FoveateError, match="odd"):
        AggregatedAttention(8, 2, window=4)
