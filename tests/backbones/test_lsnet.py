"""LSNet, against the authors' outputs; its attention's biases, and its dynamic kernels."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.levit import offset_bias
from foveate.ops.lsnet import LsConv
from foveate.ops.neighbourhood import mix_neighbours_unfolded


@pytest.mark.paper("lsnet")
def test_the_authors_outputs(oracle):
    official = oracle("lsnet__lsnet_t_distillFalse")
    model = official.load(create_model("lsnet_t"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    found = set(official.agrees(model))
    assert {"patch_embed", "blocks2.3", "blocks3.9", "blocks4.11", "head"} <= found


@pytest.mark.paper("lsnet")
def test_published_parameter_counts():
    """Table 1 of arXiv 2503.23135, in millions, of the deployed form."""
    for name, millions in {"t": 11.4, "s": 16.1, "b": 23.2}.items():
        with torch.device("meta"):
            model = create_model(f"lsnet_{name}", deploy=True)
        found = sum(p.numel() for p in model.parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.06), name


@pytest.mark.paper("lsnet")
def test_channels_of_a_group_share_a_kernel():
    """Channel c has the kernel of group c % G."""
    torch.manual_seed(0)
    op = LsConv(16).eval()
    x = torch.randn(1, 16, 5, 6)
    weights = op.perceive(x).view(1, 2, 9, 5, 6).repeat(1, 8, 1, 1, 1)
    expected = x + op.norm(mix_neighbours_unfolded(x, weights, 3))
    torch.testing.assert_close(op(x), expected)


def test_biases_by_distance():
    table = torch.arange(9.0).view(1, 9)
    bias = offset_bias(table, 3, torch.Size((3, 3)))[0].view(3, 3, 3, 3)
    for a in range(3):
        for b in range(3):
            for c in range(3):
                for d in range(3):
                    assert bias[a, b, c, d] == 3 * abs(a - c) + abs(b - d)
    assert offset_bias(table, 3, torch.Size((5, 4))).shape == (1, 20, 20)


def test_mistakes():
    with pytest.raises(FoveateError, match="groups"):
        LsConv(12)
