"""Clipped softmax against its formula, gates against one linear layer a head."""

import math

import pytest
import torch
from torch import nn

from foveate.errors import FoveateError
from foveate.ops.attention import SelfAttention
from foveate.ops.quantizable_transformers import (
    AttentionGate,
    ClippedSoftmax,
    QuantizableAttention,
    stretch,
)

pytestmark = pytest.mark.paper("quantizable_transformers")


@pytest.mark.parametrize(("gamma", "zeta"), [(-0.03, 1.0), (0.0, 1.1), (-0.03, 1.03)])
def test_clipping_has_its_thresholds_and_gradients(gamma, zeta):
    """Equation 4: zero below -γ / (ζ - γ), one above (1 - γ) / (ζ - γ), linear between."""
    p = torch.linspace(0, 1, 5001, dtype=torch.float64, requires_grad=True)
    below, above = -gamma / (zeta - gamma), (1 - gamma) / (zeta - gamma)
    out = stretch(p, gamma, zeta)
    out.sum().backward()
    line = (p - below) / (above - below)
    wanted = torch.where(p < below, 0, torch.where(p > above, 1, line))
    torch.testing.assert_close(out, wanted)
    inside = (p > below + 1e-9) & (p < above - 1e-9)
    assert torch.equal((out > 0) & (out < 1), inside)
    assert p.grad is not None
    torch.testing.assert_close(p.grad[inside], torch.full_like(p[inside], zeta - gamma))
    assert p.grad[p < below - 1e-9].eq(0).all()
    assert p.grad[p > above + 1e-9].eq(0).all()


def test_alpha_goes_by_the_number_of_places():
    torch.manual_seed(0)
    for places in (16, 197):
        scores = 2 * torch.randn(2, 3, 5, places)
        wanted = ClippedSoftmax(None, -2 / places)(scores)
        torch.testing.assert_close(ClippedSoftmax(2.0)(scores), wanted)
        assert 0 < (wanted == 0).float().mean() < 1
        torch.testing.assert_close(ClippedSoftmax(0.0)(scores), scores.softmax(-1))
        even, most = torch.zeros(1, 1, places), places / (places - 1)
        assert ClippedSoftmax(0.99 * most)(even).all()
        assert not ClippedSoftmax(1.01 * most)(even).any()


@pytest.mark.parametrize(
    ("kind", "params"),
    [("linear", 6 * (32 + 1)), ("mlp", 6 * (4 * (32 + 2) + 1)), ("all_heads", 6 * (192 + 1))],
)
def test_gates_have_the_papers_parameters(kind, params):
    """Table 4. Of BERT-base, linear gates are less than 0.009%."""
    gate = AttentionGate(192, 6, kind, hidden=4)
    assert sum(p.numel() for p in gate.parameters()) == params
    bert = 12 * sum(p.numel() for p in AttentionGate(768, 12).parameters())
    assert bert / 109e6 < 0.009 / 100


def test_each_head_has_a_layer_of_its_own_for_all_tokens():
    """As the authors write it: tokens folded into heads, and a linear layer for each."""
    torch.manual_seed(0)
    gate, x = AttentionGate(12, 3), torch.randn(2, 5, 12)
    assert isinstance(gate.score, nn.Conv2d)
    folded = x.view(2, 5, 3, 4).permute(0, 2, 1, 3)
    rows = []
    for head in range(3):
        layer = nn.Linear(4, 1)
        layer.weight.data = gate.score.weight.data[head].view(1, 4)
        layer.bias.data = gate.score.bias.data[head].view(1)
        rows.append(layer(folded[:, head]).sigmoid())
    torch.testing.assert_close(gate(x), torch.stack(rows, 1))
    as_map = x.mT.unflatten(2, (1, 5))
    torch.testing.assert_close(gate(as_map), gate(x))


@pytest.mark.parametrize("kind", ["linear", "mlp", "all_heads"])
def test_gates_begin_as_far_open_as_asked(kind):
    torch.manual_seed(0)
    x = torch.randn(64, 16, 32)
    assert AttentionGate(32, 4, kind, opened=0.25)(0 * x).mean().item() == pytest.approx(
        0.25, abs=0.1 if kind == "mlp" else 1e-6
    )
    torch.testing.assert_close(
        AttentionGate(32, 4, kind, opened=0.25, neutral=True)(x), torch.ones(64, 4, 16, 1)
    )


def test_without_clipping_and_gates_it_is_attention():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 3, 5, requires_grad=True)
    plain = SelfAttention(16, 4)
    wanted = plain(x)
    slope = torch.autograd.grad(wanted.square().sum(), x)[0]
    for ours in (QuantizableAttention(16, gate=None), QuantizableAttention(16, 4, 0.0, None)):
        ours.load_state_dict(plain.state_dict())
        torch.testing.assert_close(ours(x), wanted)
        torch.testing.assert_close(torch.autograd.grad(ours(x).square().sum(), x)[0], slope)
    gated = QuantizableAttention(16, alpha=2.0)
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert gated.gate is not None
    assert isinstance(gated.gate.score, nn.Conv2d)
    nn.init.constant_(gated.gate.score.bias, -math.inf)
    nothing = gated.proj.bias.view(1, -1, 1, 1).expand_as(x)
    torch.testing.assert_close(gated(x), nothing, atol=0, rtol=0)


def test_mistakes():
    for make, message in (
        (lambda: ClippedSoftmax(None), "give one, and None"),
        (lambda: ClippedSoftmax(1.0, -0.1), "give one, and None"),
        (lambda: ClippedSoftmax(-1.0), "alpha is -1"),
        (lambda: ClippedSoftmax(None, 0.1), "gamma is 0.1"),
        (lambda: ClippedSoftmax(zeta=0.9), "zeta is 0.9"),
        (lambda: AttentionGate(12, 5), "12 channels cannot be divided among 5 heads"),
        (lambda: AttentionGate(12, 3, "deep"), "kind is 'deep'"),  # pyright: ignore
        (lambda: AttentionGate(12, 3, "mlp", 0), "hidden is 0"),
        (lambda: AttentionGate(12, 3, opened=1.0), "opened is 1"),
    ):
        with pytest.raises(FoveateError, match=message):
            make()
