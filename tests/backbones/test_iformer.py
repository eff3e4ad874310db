"""Inception Transformer, against the authors' outputs and attention written out."""

import pytest
import torch
from torch.nn import functional as F

from foveate.backbones import create_model
from foveate.errors import FoveateError
from foveate.ops.iformer import InceptionMixer, LowMixer


@pytest.mark.paper("iformer")
def test_the_authors_outputs(oracle):
    official = oracle("iformer__iformer_small")
    model = official.load(create_model("iformer_small"))
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    found = set(official.agrees(model))
    assert {"blocks1.0", "blocks2.2", "blocks3.8", "blocks4.2", "norm", "head"} <= found


@pytest.mark.paper("iformer")
def test_published_parameter_counts():
    """Of the authors' file, in millions."""
    for name, millions in {"small": 19.866, "base": 47.866, "large": 86.637}.items():
        with torch.device("meta"):
            found = sum(p.numel() for p in create_model(f"iformer_{name}").parameters())
        assert found / 1e6 == pytest.approx(millions, abs=0.001), name


def test_attention_of_the_pooled_map():
    torch.manual_seed(0)
    op = LowMixer(8, 2, 2)
    x = torch.randn(1, 8, 6, 4)
    small = F.avg_pool2d(x, 2).flatten(2).mT[0]
    rows = small @ op.qkv.weight[..., 0, 0].T + op.qkv.bias
    mixed = []
    for head in range(2):
        q, k, v = (rows[:, 8 * i + 4 * head : 8 * i + 4 * head + 4] for i in range(3))
        mixed.append((q @ k.T / 2).softmax(-1) @ v)
    expected = torch.cat(mixed, 1).T.view(1, 8, 3, 2)
    expected = expected.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(op(x), expected)


@pytest.mark.parametrize("size", [(7, 9), (1, 1), (5, 4)])
def test_any_size(size):
    assert InceptionMixer(16, 4, 2, pool=2)(torch.randn(1, 16, *size)).shape == (1, 16, *size)


def test_parts_that_do_not_fit():
    with pytest.raises(FoveateError, match="attend"):
        InceptionMixer(16, 4, 4)
    with pytest.raises(FoveateError, match="attend"):
        InceptionMixer(10, 4, 1)
