"""The transformer that pools in every second block, against the authors' outputs."""

import pytest
import torch

from foveate.backbones import create_model
from foveate.ops.attention import SelfAttention
from foveate.ops.pflayer import ExpandedMaxMixer


@pytest.mark.paper("pflayer")
def test_the_authors_outputs(oracle):
    official = oracle("pflayer__vit_ti_max")
    model = create_model("pf_vit_ti_max")
    assert sum(p.numel() for p in model.parameters()) == official.facts["params"]
    taps = official.agrees(official.load(model))
    assert {f"blocks.{i}" for i in range(12)} | {"norm", "gap", "head"} <= set(taps)


def test_blocks_attend_and_pool_in_turn():
    blocks = create_model("pf_vit_mini32").stages[0].blocks
    kinds = [type(block.attn) for block in blocks]
    assert kinds == [SelfAttention, ExpandedMaxMixer] * 3


def test_attention_equals_pytorchs_with_the_same_weights():
    torch.manual_seed(0)
    ours = SelfAttention(12, heads=3)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data = ours.qkv.weight.data.flatten(1)
    theirs.in_proj_bias.data = ours.qkv.bias.data
    theirs.out_proj.weight.data = ours.proj.weight.data.flatten(1)
    theirs.out_proj.bias.data = ours.proj.bias.data
    x = torch.randn(2, 12, 4, 5)
    rows = x.flatten(2).mT
    expected = theirs(rows, rows, rows)[0].mT.unflatten(2, (4, 5))
    torch.testing.assert_close(ours(x), expected)
