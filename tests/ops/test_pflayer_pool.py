"""The maximum over neighbours, against its definition."""

import pytest
import torch

from foveate.ops.pflayer import MaxPoolMixer


@pytest.mark.paper("pflayer")
@pytest.mark.parametrize("stride", [1, 2])
def test_a_maximum_over_neighbours(stride):
    x = torch.randn(2, 3, 7, 9)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), value=-torch.inf)
    expected = padded.unfold(2, 3, stride).unfold(3, 3, stride).amax((-1, -2))
    assert torch.equal(MaxPoolMixer(3, stride=stride)(x), expected)
    assert not list(MaxPoolMixer(3).parameters())
