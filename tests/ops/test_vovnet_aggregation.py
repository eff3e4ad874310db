"""One-shot aggregation, against timm's block with the same weights."""

import pytest
import torch

from foveate.ops.vovnet import OneShotAggregation


@pytest.mark.paper("vovnet")
def test_equals_timm():
    from timm.models.vovnet import OsaBlock

    torch.manual_seed(0)
    theirs = OsaBlock(in_chs=8, mid_chs=6, out_chs=12, layer_per_block=5).eval()
    ours = OneShotAggregation(8, 12, 6).eval()
    source = theirs.state_dict()
    ours.load_state_dict(dict(zip(ours.state_dict(), source.values(), strict=True)))
    x = torch.randn(2, 8, 10, 9)
    torch.testing.assert_close(ours(x), theirs(x))
