"""Partial convolution, against timm's and the paper's own arithmetic."""

import pytest
import torch

from foveate import FoveateError
from foveate.measure import count
from foveate.ops.fasternet import PartialConv


@pytest.mark.paper("fasternet")
def test_equals_timm():
    from timm.models.fasternet import Partial_conv3

    theirs = Partial_conv3(24, 4, "split_cat").eval()
    ours = PartialConv(24, 4)
    ours.conv.load_state_dict(theirs.partial_conv3.state_dict())
    x = torch.randn(2, 24, 9, 7)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.paper("fasternet")
def test_a_sixteenth_of_the_arithmetic():
    """Section 3.2: with a quarter of the channels, 1/16 of a full convolution's operations."""
    x = torch.zeros(1, 32, 8, 8)
    full = count(torch.nn.Conv2d(32, 32, 3, padding=1), x).macs
    assert count(PartialConv(32), x).macs * 16 == full


def test_refusals():
    with pytest.raises(FoveateError, match="share"):
        PartialConv(8, 9)
    with pytest.raises(FoveateError, match="odd"):
        PartialConv(8, kernel=2)
