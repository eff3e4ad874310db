"""L2ViT, against the authors' outputs and attention written out."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.measure import count
from foveate.ops.l2vit import LinearAttention, WindowAttention


@pytest.mark.paper("l2vit")
def test_the_authors_outputs(oracle):
    official = oracle("l2vit__L2ViT_Tiny")
    model = official.load(create_model("l2vit_tiny"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    found = set(official.agrees(model, {"stages.3": "stages.3.blocks"}))
    assert {"stages.0", "stages.3", "downsample_layers.0", "downsample_layers.3", "norm"} <= found


@pytest.mark.paper("l2vit")
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_linear_attention_is_attention(scale):
    """Queries times keys first, as equation 4 has it; sums below and above 100."""
    torch.manual_seed(0)
    op = LinearAttention(8, 2).double()
    x = scale * torch.randn(1, 8, 5, 4, dtype=torch.float64)
    rows = op.qkv(x).flatten(2)[0].T
    mixed = []
    for head in range(2):
        q, k, v = (rows[:, 8 * i + 4 * head : 8 * i + 4 * head + 4] for i in range(3))
        weights = q.relu() @ k.relu().T
        weights = weights / weights.sum(1, keepdim=True).clamp(min=100) * op.temperature[head]
        mixed.append(weights @ v)
    expected = op.proj(torch.cat(mixed, 1).T.view(1, 8, 5, 4))
    torch.testing.assert_close(op(x), expected)


@pytest.mark.paper("l2vit")
def test_the_cost_is_linear():
    macs = [count(LinearAttention(32, 4), torch.zeros(1, 32, s, s)).macs for s in (14, 28)]
    assert macs[1] == 4 * macs[0]


def test_windows_see_only_themselves():
    torch.manual_seed(0)
    op = WindowAttention(8, 2, 4)
    x = torch.randn(1, 8, 8, 12)
    y = x.clone()
    y[..., :4, :4] += 1
    changed = (op(x) != op(y)).any(1)[0]
    assert changed[:4, :4].all()
    assert not changed[4:].any()
    assert not changed[:, 4:].any()
    assert op(torch.randn(1, 8, 5, 7)).shape == (1, 8, 5, 7)
